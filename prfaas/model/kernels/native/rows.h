// Work on each row of a step by itself: norms, gates, rotations, and writing rows into the cache.

#pragma once

#include <algorithm>
#include <cmath>

#include "pool.h"
#include "simd.h"

namespace {

// body(first, last) for ranges of rows; a range is worth sharing when it has this many elements.
template <class Body>
inline void for_rows(Crew& crew, int64_t rows, int64_t width, const Body& body) {
  constexpr int64_t kWorth = 16384;
  const int64_t chunks = std::clamp<int64_t>(rows * width / kWorth, 1, std::min<int64_t>(rows, 32));
  crew.share(chunks, [&](int64_t chunk) { body(rows * chunk / chunks, rows * (chunk + 1) / chunks); });
}

// sum = x + more (more and sum may be null together), out = sum / sqrt(mean(sum^2) + eps) * weight; d elements.
inline void norm_row(const bf16* x, const bf16* more, bf16* sum, const float* weight, bf16* out, int64_t d, float eps) {
  __m512 squares = _mm512_setzero_ps();
  for (int64_t i = 0; i < d; i += 16) {
    const __mmask16 mask = first16(d - i);
    __m256i packed = _mm256_maskz_loadu_epi16(mask, x + i);
    if (more) {
      packed = narrow(_mm512_add_ps(widen(packed), widen(_mm256_maskz_loadu_epi16(mask, more + i))));
      _mm256_mask_storeu_epi16(sum + i, mask, packed);
    }
    const __m512 v = widen(packed);
    squares = _mm512_fmadd_ps(v, v, squares);
  }
  const bf16* from = more ? sum : x;
  const __m512 scale = _mm512_set1_ps(1.0f / std::sqrt(_mm512_reduce_add_ps(squares) / float(d) + eps));
  for (int64_t i = 0; i < d; i += 16) {
    const __mmask16 mask = first16(d - i);
    const __m512 v = _mm512_mul_ps(widen(_mm256_maskz_loadu_epi16(mask, from + i)), scale);
    _mm256_mask_storeu_epi16(out + i, mask, narrow(_mm512_mul_ps(v, _mm512_maskz_loadu_ps(mask, weight + i))));
  }
}

// [gate | up] of width 2d: out = gate / (1 + exp(-gate)) * up.
inline void gate_row(const bf16* x, bf16* out, int64_t d) {
  const __m512 one = _mm512_set1_ps(1.0f), most = _mm512_set1_ps(87.0f), least = _mm512_set1_ps(-87.0f);
  for (int64_t i = 0; i < d; i += 16) {
    const __mmask16 mask = first16(d - i);
    const __m512 gate = widen(_mm256_maskz_loadu_epi16(mask, x + i)), up = widen(_mm256_maskz_loadu_epi16(mask, x + d + i));
    const __m512 below = _mm512_max_ps(_mm512_min_ps(_mm512_sub_ps(_mm512_setzero_ps(), gate), most), least);
    const __m512 sigmoid = _mm512_div_ps(one, _mm512_add_ps(one, exp_ps(below)));
    _mm256_mask_storeu_epi16(out + i, mask, narrow(_mm512_mul_ps(_mm512_mul_ps(gate, sigmoid), up)));
  }
}

// Channel i is turned against channel i + half, by one angle each; channels from 2 * half on are copied.
inline void rotate_row(const bf16* x, const bf16* cos, const bf16* sin, bf16* out, int64_t half, int64_t d) {
  for (int64_t i = 0; i < half; i += 16) {
    const __mmask16 mask = first16(half - i);
    const __m512 a = widen(_mm256_maskz_loadu_epi16(mask, x + i)), b = widen(_mm256_maskz_loadu_epi16(mask, x + half + i));
    const __m512 c = widen(_mm256_maskz_loadu_epi16(mask, cos + i)), s = widen(_mm256_maskz_loadu_epi16(mask, sin + i));
    _mm256_mask_storeu_epi16(out + i, mask, narrow(_mm512_fmsub_ps(a, c, _mm512_mul_ps(b, s))));
    _mm256_mask_storeu_epi16(out + half + i, mask, narrow(_mm512_fmadd_ps(b, c, _mm512_mul_ps(a, s))));
  }
  std::memcpy(out + 2 * half, x + 2 * half, size_t(d - 2 * half) * sizeof(bf16));
}

}  // namespace
