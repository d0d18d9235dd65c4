// CPU kernels for steps with few rows, where reading weights once and staying out of dispatchers is everything.
//
// Plain C entry points over raw pointers, called through ctypes; the caller checks shapes, dtypes and contiguity.
// bf16 is passed as uint16_t. Needs AVX512 with BF16 (checked by the caller through prfaas_supported).

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "pool.h"

namespace {

using bf16 = uint16_t;

// ---- conversions ------------------------------------------------------------------------------------------------

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

inline __m512bh load_pairs(const bf16* at) { return (__m512bh)_mm512_loadu_si512(at); }
inline __m512bh load_pairs(const bf16* at, __mmask32 mask) { return (__m512bh)_mm512_maskz_loadu_epi16(mask, at); }

// ---- products ---------------------------------------------------------------------------------------------------

// Sums of four registers, one in each element of every 128-bit lane, still to be added over the lanes.
inline __m512 fold(__m512 a, __m512 b, __m512 c, __m512 d) {
  const __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
  const __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
  const __m512d low = _mm512_unpacklo_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd));
  const __m512d high = _mm512_unpackhi_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd));
  return _mm512_add_ps(_mm512_castpd_ps(low), _mm512_castpd_ps(high));
}

// Lanes 0, 2 plus lanes 1, 3 of both registers: two such steps add four folded registers over their lanes.
inline __m512 fold_lanes(__m512 a, __m512 b) {
  return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
}

// totals[r * M + m] = sum of the elements of sum[r][m]. Sixteen reductions together cost a third of one by one, which
// matters because a tile's inner loop is only depth / 32 long.
template <int R, int M>
inline void reduce(const __m512 (&sum)[R][M], float* totals) {
  if constexpr (R == 4 && M == 4) {
    __m512 rows[4];
    for (int r = 0; r < 4; ++r) rows[r] = fold(sum[r][0], sum[r][1], sum[r][2], sum[r][3]);
    _mm512_storeu_ps(totals, fold_lanes(fold_lanes(rows[0], rows[1]), fold_lanes(rows[2], rows[3])));
  } else if constexpr (R == 4 && M == 1) {
    const __m512 all = fold(sum[0][0], sum[1][0], sum[2][0], sum[3][0]);
    const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(all), _mm512_extractf32x8_ps(all, 1));
    _mm_storeu_ps(totals, _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1)));
  } else {
    for (int r = 0; r < R; ++r)
      for (int m = 0; m < M; ++m) totals[r * M + m] = _mm512_reduce_add_ps(sum[r][m]);
  }
}

// R weight rows times M input rows; accumulators live in registers.
template <int R, int M>
void tile(const bf16* x, int64_t x_stride, const bf16* w, int64_t depth, const bf16* bias, bf16* out, int64_t out_stride) {
  __m512 sum[R][M];
  for (auto& row : sum)
    for (auto& cell : row) cell = _mm512_setzero_ps();
  int64_t k = 0;
  for (; k + 32 <= depth; k += 32) {
    __m512bh rows[R];
    for (int r = 0; r < R; ++r) rows[r] = load_pairs(w + r * depth + k);
    for (int m = 0; m < M; ++m) {
      const __m512bh column = load_pairs(x + m * x_stride + k);
      for (int r = 0; r < R; ++r) sum[r][m] = _mm512_dpbf16_ps(sum[r][m], rows[r], column);
    }
  }
  if (k < depth) {
    const __mmask32 mask = (__mmask32(1) << (depth - k)) - 1;
    for (int m = 0; m < M; ++m) {
      const __m512bh column = load_pairs(x + m * x_stride + k, mask);
      for (int r = 0; r < R; ++r) sum[r][m] = _mm512_dpbf16_ps(sum[r][m], load_pairs(w + r * depth + k, mask), column);
    }
  }
  float totals[R * M];
  reduce<R, M>(sum, totals);
  for (int r = 0; r < R; ++r)
    for (int m = 0; m < M; ++m) out[m * out_stride + r] = narrow(totals[r * M + m] + (bias ? widen(bias[r]) : 0.0f));
}

template <int R>
void tile_rows(int64_t m, const bf16* x, int64_t xs, const bf16* w, int64_t k, const bf16* b, bf16* out, int64_t os) {
  while (m >= 4) {
    tile<R, 4>(x, xs, w, k, b, out, os);
    x += 4 * xs, out += 4 * os, m -= 4;
  }
  if (m == 3) tile<R, 3>(x, xs, w, k, b, out, os);
  else if (m == 2) tile<R, 2>(x, xs, w, k, b, out, os);
  else if (m == 1) tile<R, 1>(x, xs, w, k, b, out, os);
}

// ---- softmax over one row -----------------------------------------------------------------------------------------

inline __m512 exp_ps(__m512 x) {  // 2^n times a degree-6 polynomial; relative error below 2e-7, zero below -87
  const __mmask16 tiny = _mm512_cmp_ps_mask(x, _mm512_set1_ps(-87.0f), _CMP_LT_OQ);
  const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), 0);
  const __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(1.42860677e-6f), _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693145752f), x));
  __m512 p = _mm512_set1_ps(1.0f / 720);
  for (float c : {1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f}) p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(c));
  return _mm512_mask_mov_ps(_mm512_scalef_ps(p, n), tiny, _mm512_setzero_ps());
}

// Turns scores into exp(score - max), in place, and returns their sum. The buffer is padded to a multiple of 16.
float exponentiate(float* scores, int64_t count) {
  __m512 top = _mm512_set1_ps(-INFINITY);
  for (int64_t j = count; j % 16 != 0; ++j) scores[j] = -INFINITY;
  for (int64_t j = 0; j < count; j += 16) top = _mm512_max_ps(top, _mm512_loadu_ps(scores + j));
  const __m512 shift = _mm512_set1_ps(_mm512_reduce_max_ps(top));
  __m512 total = _mm512_setzero_ps();
  for (int64_t j = 0; j < count; j += 16) {
    const __m512 e = exp_ps(_mm512_sub_ps(_mm512_loadu_ps(scores + j), shift));
    _mm512_storeu_ps(scores + j, e);
    total = _mm512_add_ps(total, e);
  }
  return _mm512_reduce_add_ps(total);
}

// One head of the paged cache: entries [start, stop) of a block list.
struct Entries {
  const bf16* base;
  const int64_t* blocks;
  int64_t block_tokens, stride;
  const bf16* at(int64_t j) const { return base + (blocks[j / block_tokens] * block_tokens + j % block_tokens) * stride; }
};

void attend_one(const bf16* query, int64_t group, int64_t dim, const Entries& keys, const Entries& values, int64_t start,
                int64_t stop, float scale, float* scores, bf16* out) {
  const int64_t count = stop - start, padded = (count + 15) / 16 * 16;
  const __mmask32 tail = dim % 32 ? (__mmask32(1) << (dim % 32)) - 1 : ~__mmask32(0);
  for (int64_t j = 0; j < count; ++j) {
    const bf16* key = keys.at(start + j);
    for (int64_t g = 0; g < group; ++g) {
      __m512 sum = _mm512_setzero_ps();
      for (int64_t k = 0; k < dim; k += 32) {
        const __mmask32 mask = k + 32 <= dim ? ~__mmask32(0) : tail;
        sum = _mm512_dpbf16_ps(sum, load_pairs(key + k, mask), load_pairs(query + g * dim + k, mask));
      }
      scores[g * padded + j] = _mm512_reduce_add_ps(sum) * scale;
    }
  }
  std::vector<float> inverse(group);
  for (int64_t g = 0; g < group; ++g) inverse[g] = 1.0f / exponentiate(scores + g * padded, count);
  for (int64_t column = 0; column < dim; column += 64) {
    for (int64_t first = 0; first < group; first += 4) {
      const int64_t many = std::min<int64_t>(4, group - first);
      __m512 sum[4][4];
      __mmask16 masks[4];
      for (int c = 0; c < 4; ++c) {
        const int64_t left = std::clamp<int64_t>(dim - column - 16 * c, 0, 16);
        masks[c] = __mmask16((1u << left) - 1);
        for (auto& row : sum) row[c] = _mm512_setzero_ps();
      }
      for (int64_t j = 0; j < count; ++j) {
        const bf16* value = values.at(start + j) + column;
        __m512 wide[4];
        for (int c = 0; c < 4; ++c) wide[c] = widen(_mm256_maskz_loadu_epi16(masks[c], value + 16 * c));
        for (int64_t g = 0; g < many; ++g) {
          const __m512 weight = _mm512_set1_ps(scores[(first + g) * padded + j]);
          for (int c = 0; c < 4; ++c) sum[g][c] = _mm512_fmadd_ps(weight, wide[c], sum[g][c]);
        }
      }
      for (int64_t g = 0; g < many; ++g)
        for (int c = 0; c < 4; ++c) {
          const __m512 scaled = _mm512_mul_ps(sum[g][c], _mm512_set1_ps(inverse[first + g]));
          _mm256_mask_storeu_epi16(out + (first + g) * dim + column + 16 * c, masks[c], (__m256i)_mm512_cvtneps_pbh(scaled));
        }
    }
  }
}

// ---- delta rule -----------------------------------------------------------------------------------------------------

constexpr int64_t kColumns = 64;  // columns of a state that one worker carries through all tokens: 128 rows of them fit in L1

struct Delta {
  const float *query, *key, *value, *decay, *beta;
  float *states, *out;
  int64_t heads, dk, dv, decay_width;
};

// Columns [column, column + 64) of one head's state through tokens [start, stop).
void delta_columns(const Delta& d, int64_t head, int64_t column, int64_t slot, int64_t start, int64_t stop) {
  __mmask16 masks[4];
  for (int c = 0; c < 4; ++c) {
    const int64_t left = std::clamp<int64_t>(d.dv - column - 16 * c, 0, 16);
    masks[c] = __mmask16((1u << left) - 1);
  }
  thread_local std::vector<float> held;
  held.resize(size_t(d.dk * kColumns));
  float* state = held.data();
  float* home = d.states + ((slot * d.heads + head) * d.dk) * d.dv + column;
  for (int64_t i = 0; i < d.dk; ++i)
    for (int c = 0; c < 4; ++c)
      _mm512_storeu_ps(state + i * kColumns + 16 * c, _mm512_maskz_loadu_ps(masks[c], home + i * d.dv + 16 * c));
  for (int64_t t = start; t < stop; ++t) {
    const int64_t row = t * d.heads + head;
    const float *q = d.query + row * d.dk, *k = d.key + row * d.dk, *a = d.decay + row * d.decay_width;
    const int64_t step = d.decay_width == 1 ? 0 : 1;
    __m512 recalled[4], result[4], update[4];
    for (int c = 0; c < 4; ++c) recalled[c] = result[c] = _mm512_setzero_ps();
    for (int64_t i = 0; i < d.dk; ++i) {
      const __m512 factor = _mm512_set1_ps(k[i] * a[i * step]);
      for (int c = 0; c < 4; ++c)
        recalled[c] = _mm512_fmadd_ps(factor, _mm512_loadu_ps(state + i * kColumns + 16 * c), recalled[c]);
    }
    const __m512 beta = _mm512_set1_ps(d.beta[row]);
    for (int c = 0; c < 4; ++c) {
      const __m512 v = _mm512_maskz_loadu_ps(masks[c], d.value + row * d.dv + column + 16 * c);
      update[c] = _mm512_mul_ps(beta, _mm512_sub_ps(v, recalled[c]));
    }
    for (int64_t i = 0; i < d.dk; ++i) {
      const __m512 decay = _mm512_set1_ps(a[i * step]), key = _mm512_set1_ps(k[i]), query = _mm512_set1_ps(q[i]);
      for (int c = 0; c < 4; ++c) {
        float* cell = state + i * kColumns + 16 * c;
        const __m512 fresh = _mm512_fmadd_ps(key, update[c], _mm512_mul_ps(decay, _mm512_loadu_ps(cell)));
        _mm512_storeu_ps(cell, fresh);
        result[c] = _mm512_fmadd_ps(query, fresh, result[c]);
      }
    }
    for (int c = 0; c < 4; ++c) _mm512_mask_storeu_ps(d.out + row * d.dv + column + 16 * c, masks[c], result[c]);
  }
  for (int64_t i = 0; i < d.dk; ++i)
    for (int c = 0; c < 4; ++c)
      _mm512_mask_storeu_ps(home + i * d.dv + 16 * c, masks[c], _mm512_loadu_ps(state + i * kColumns + 16 * c));
}

}  // namespace

extern "C" {

int prfaas_supported() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bf16");
}

void* prfaas_pool_create(int64_t threads) {
  auto* pool = new Pool;
  for (int64_t i = 1; i < threads; ++i) pool->threads.emplace_back([pool] { pool->loop(); });
  return pool;
}

void prfaas_pool_destroy(void* handle) {
  auto* pool = static_cast<Pool*>(handle);
  pool->stopping.store(true, std::memory_order_release);
  pool->ticket.fetch_add(uint64_t(1) << 32, std::memory_order_acq_rel);
  pool->ticket.notify_all();
  for (auto& thread : pool->threads) thread.join();
  delete pool;
}

// out[m, n] = x[m, :] . w[n, :] + bias[n]. Rows of x and out are x_stride and n apart; w is contiguous.
void prfaas_linear(void* pool, const bf16* x, int64_t x_stride, const bf16* w, const bf16* bias, bf16* out, int64_t m,
                   int64_t n, int64_t k) {
  constexpr int64_t kRows = 4;
  const int64_t tiles = n / kRows;
  const int64_t chunks = n * k < 65536 ? 1 : std::clamp<int64_t>(tiles / 16, 1, 64);
  parallel(static_cast<Pool*>(pool), chunks, [&](int64_t chunk) {
    const int64_t first = tiles * chunk / chunks, last = tiles * (chunk + 1) / chunks;
    for (int64_t i = first * kRows; i < last * kRows; i += kRows)
      tile_rows<kRows>(m, x, x_stride, w + i * k, k, bias ? bias + i : nullptr, out + i, n);
    if (chunk + 1 == chunks)
      for (int64_t i = tiles * kRows; i < n; ++i)
        tile_rows<1>(m, x, x_stride, w + i * k, k, bias ? bias + i : nullptr, out + i, n);
  });
}

// Rows of width d: out = x / sqrt(mean(x^2) + eps) * weight.
void prfaas_rms_norm(const bf16* x, const float* weight, bf16* out, int64_t rows, int64_t d, float eps) {
  for (int64_t r = 0; r < rows; ++r, x += d, out += d) {
    __m512 squares = _mm512_setzero_ps();
    for (int64_t i = 0; i < d; i += 16) {
      const __mmask16 mask = d - i >= 16 ? 0xffff : __mmask16((1u << (d - i)) - 1);
      const __m512 v = widen(_mm256_maskz_loadu_epi16(mask, x + i));
      squares = _mm512_fmadd_ps(v, v, squares);
    }
    const __m512 scale = _mm512_set1_ps(1.0f / std::sqrt(_mm512_reduce_add_ps(squares) / float(d) + eps));
    for (int64_t i = 0; i < d; i += 16) {
      const __mmask16 mask = d - i >= 16 ? 0xffff : __mmask16((1u << (d - i)) - 1);
      const __m512 v = _mm512_mul_ps(widen(_mm256_maskz_loadu_epi16(mask, x + i)), scale);
      const __m512 y = _mm512_mul_ps(v, _mm512_maskz_loadu_ps(mask, weight + i));
      _mm256_mask_storeu_epi16(out + i, mask, (__m256i)_mm512_cvtneps_pbh(y));
    }
  }
}

// Rows [gate | up] of width 2d: out = gate / (1 + exp(-gate)) * up.
void prfaas_silu_gate(const bf16* x, bf16* out, int64_t rows, int64_t d) {
  const __m512 one = _mm512_set1_ps(1.0f);
  for (int64_t r = 0; r < rows; ++r, x += 2 * d, out += d)
    for (int64_t i = 0; i < d; i += 16) {
      const __mmask16 mask = d - i >= 16 ? 0xffff : __mmask16((1u << (d - i)) - 1);
      const __m512 gate = widen(_mm256_maskz_loadu_epi16(mask, x + i)), up = widen(_mm256_maskz_loadu_epi16(mask, x + d + i));
      const __m512 below = _mm512_max_ps(_mm512_sub_ps(_mm512_setzero_ps(), gate), _mm512_set1_ps(-87.0f));
      const __m512 sigmoid = _mm512_div_ps(one, _mm512_add_ps(one, exp_ps(_mm512_min_ps(below, _mm512_set1_ps(88.0f)))));
      _mm256_mask_storeu_epi16(out + i, mask, (__m256i)_mm512_cvtneps_pbh(_mm512_mul_ps(_mm512_mul_ps(gate, sigmoid), up)));
    }
}

// One query row per sequence over a paged cache. query, out: [num, kv_heads * group, dim]; keys, values:
// [blocks, block_tokens, kv_heads, dim]; table: [num, width]; edges: [num, 2], the visible entries of each table row.
void prfaas_attend(void* pool, const bf16* query, const bf16* keys, const bf16* values, const int64_t* table, int64_t width,
                   const int64_t* edges, bf16* out, int64_t num, int64_t kv_heads, int64_t group, int64_t dim,
                   int64_t block_tokens, float scale) {
  parallel(static_cast<Pool*>(pool), num * kv_heads, [&](int64_t item) {
    const int64_t n = item / kv_heads, head = item % kv_heads, start = edges[2 * n], stop = edges[2 * n + 1];
    thread_local std::vector<float> scores;
    scores.resize(size_t(group * ((stop - start + 15) / 16 * 16)));
    const int64_t stride = kv_heads * dim, at = (n * kv_heads + head) * group * dim;
    const Entries key{keys + head * dim, table + n * width, block_tokens, stride};
    const Entries value{values + head * dim, table + n * width, block_tokens, stride};
    attend_one(query + at, group, dim, key, value, start, stop, scale, scores.data(), out + at);
  });
}

// The gated delta rule over several runs of tokens. query, key: [T, heads, dk]; value, out: [T, heads, dv]; decay:
// [T, heads, decay_width] factors (not logarithms); beta: [T, heads]; run r owns tokens [runs[3r+1], runs[3r+2]) and
// updates slot runs[3r] of states [slots, heads, dk, dv].
void prfaas_delta(void* pool, const float* query, const float* key, const float* value, const float* decay, const float* beta,
                  float* states, float* out, const int64_t* runs, int64_t num_runs, int64_t heads, int64_t dk, int64_t dv,
                  int64_t decay_width) {
  const Delta d{query, key, value, decay, beta, states, out, heads, dk, dv, decay_width};
  const int64_t tiles = (dv + kColumns - 1) / kColumns;
  parallel(static_cast<Pool*>(pool), num_runs * heads * tiles, [&](int64_t item) {
    const int64_t* run = runs + 3 * (item / (heads * tiles));
    const int64_t rest = item % (heads * tiles);
    delta_columns(d, rest / tiles, rest % tiles * kColumns, run[0], run[1], run[2]);
  });
}
}
