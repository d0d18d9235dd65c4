// bf16 and float vectors: conversions, masks, exponentials. bf16 is passed as uint16_t.

#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace {

using bf16 = uint16_t;

inline __m512 widen(__m256i packed) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(packed), 16));
}

inline float widen(bf16 value) {
  const uint32_t bits = uint32_t(value) << 16;
  float out;
  std::memcpy(&out, &bits, 4);
  return out;
}

inline bf16 narrow(float value) {  // round to nearest even; values here are finite or NaN from the model itself
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  if ((bits & 0x7fffffff) > 0x7f800000) return bf16((bits >> 16) | 0x40);
  return bf16((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

inline __m256i narrow(__m512 wide) { return (__m256i)_mm512_cvtneps_pbh(wide); }

inline void put(bf16* at, float value) { *at = narrow(value); }
inline void put(float* at, float value) { *at = value; }
inline void put(bf16* at, __mmask16 mask, __m512 values) { _mm256_mask_storeu_epi16(at, mask, narrow(values)); }
inline void put(float* at, __mmask16 mask, __m512 values) { _mm512_mask_storeu_ps(at, mask, values); }

// The first `count` of 16 (or 32) elements; none when count is not positive.
inline __mmask16 first16(int64_t count) { return count >= 16 ? 0xffff : count <= 0 ? 0 : __mmask16((1u << count) - 1); }
inline __mmask32 first32(int64_t count) { return count >= 32 ? ~__mmask32(0) : count <= 0 ? 0 : (__mmask32(1) << count) - 1; }

inline __m512bh load_pairs(const bf16* at) { return (__m512bh)_mm512_loadu_si512(at); }
inline __m512bh load_pairs(const bf16* at, __mmask32 mask) { return (__m512bh)_mm512_maskz_loadu_epi16(mask, at); }

inline __m512bh broadcast_pair(const bf16* at) {
  int32_t pair;
  std::memcpy(&pair, at, 4);
  return (__m512bh)_mm512_set1_epi32(pair);
}

// Brings `count` elements into the cache by reading them in order: a core gets several times as many bytes per second from one
// stream as from short pieces here and there.
inline void read_through(const bf16* at, int64_t count) {
  __m512i seen = _mm512_setzero_si512();
  for (int64_t i = 0; i + 32 <= count; i += 32) seen = _mm512_or_si512(seen, _mm512_loadu_si512(at + i));
  asm volatile("" ::"v"(seen));  // the reading is the purpose
}

// 2^x, relative error below 3e-7; zero below -149.
inline __m512 exp2_ps(__m512 x) {
  x = _mm512_max_ps(x, _mm512_set1_ps(-200.0f));
  const __m512 n = _mm512_roundscale_ps(x, 0), r = _mm512_sub_ps(x, n);
  __m512 p = _mm512_set1_ps(1.5403530e-4f);
  for (float c : {1.3333558e-3f, 9.6181291e-3f, 5.5504109e-2f, 2.4022651e-1f, 6.9314718e-1f, 1.0f})
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(c));
  return _mm512_scalef_ps(p, n);
}

constexpr float kLog2e = 1.44269504f;

inline __m512 exp_ps(__m512 x) { return exp2_ps(_mm512_mul_ps(x, _mm512_set1_ps(kLog2e))); }

}  // namespace
