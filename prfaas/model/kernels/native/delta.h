// The gated delta rule, token by token: a worker carries a few columns of one head's state through a block of tokens, in L1.
//
// S <- diag(a) S; u = beta (v - S^T k); S <- S + k u^T; o = S^T q. One pass over the state per token: while a token updates
// a row, the same row is already summed for what the next token will recall.

#pragma once

#include <algorithm>
#include <vector>

#include "pool.h"
#include "simd.h"

namespace {

constexpr int64_t kStateColumns = 32;  // of a state in one worker's hands: 128 rows of them are half of L1

constexpr int64_t kDeltaTokens = 64;  // that all columns of a head pass before any goes on

struct Delta {
  const float *query, *key, *value, *decay, *beta;  // [T, heads, width]; decay: logarithms, one per channel or per head
  float *states, *out;                              // [slots, heads, dk, dv]; [T, heads, dv]
  int64_t heads, dk, dv, decay_width;
};

// Decay factors of one head and tokens [start, stop), one row after the other.
inline const float* decay_factors(const Delta& d, int64_t head, int64_t start, int64_t stop) {
  thread_local std::vector<float> held;
  held.resize(size_t(kDeltaTokens * d.decay_width));
  for (int64_t t = start; t < stop; ++t)
    for (int64_t i = 0; i < d.decay_width; i += 16) {
      const __mmask16 mask = first16(d.decay_width - i);
      const __m512 logs = _mm512_maskz_loadu_ps(mask, d.decay + (t * d.heads + head) * d.decay_width + i);
      _mm512_mask_storeu_ps(&held[size_t((t - start) * d.decay_width + i)], mask, exp_ps(logs));
    }
  return held.data();
}

// Columns [column, column + kStateColumns) of one head's state through tokens [start, stop), whose decay factors are given.
inline void delta_columns(const Delta& d, int64_t head, int64_t column, int64_t slot, int64_t start, int64_t stop,
                          const float* decay) {
  const __mmask16 masks[2] = {first16(d.dv - column), first16(d.dv - column - 16)};
  thread_local std::vector<float> held;
  held.resize(size_t(d.dk * kStateColumns));
  float* state = held.data();
  float* home = d.states + ((slot * d.heads + head) * d.dk) * d.dv + column;
  const int64_t step = d.decay_width == 1 ? 0 : 1;
  const auto row = [&](const float* base, int64_t t, int64_t width) { return base + (t * d.heads + head) * width; };
  const float* key = row(d.key, start, d.dk);
  __m512 recalled[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
  for (int64_t i = 0; i < d.dk; ++i)
    for (int c = 0; c < 2; ++c) {
      const __m512 cell = _mm512_maskz_loadu_ps(masks[c], home + i * d.dv + 16 * c);
      _mm512_storeu_ps(state + i * kStateColumns + 16 * c, cell);
      recalled[c] = _mm512_fmadd_ps(_mm512_set1_ps(key[i] * decay[i * step]), cell, recalled[c]);
    }
  for (int64_t t = start; t < stop; ++t) {
    const int64_t next = t + 1 < stop ? t + 1 : t;
    const float *query = row(d.query, t, d.dk), *next_key = row(d.key, next, d.dk);
    const float* next_decay = decay + (next - t) * d.decay_width;
    const __m512 beta = _mm512_set1_ps(*row(d.beta, t, 1));
    __m512 update[2], result[2][2], recall[2][2];
    for (int c = 0; c < 2; ++c) {
      const __m512 v = _mm512_maskz_loadu_ps(masks[c], row(d.value, t, d.dv) + column + 16 * c);
      update[c] = _mm512_mul_ps(beta, _mm512_sub_ps(v, recalled[c]));
      for (int part = 0; part < 2; ++part) result[part][c] = recall[part][c] = _mm512_setzero_ps();
    }
    const auto advance = [&](int64_t i, int part) {
      const __m512 a = _mm512_set1_ps(decay[i * step]), k = _mm512_set1_ps(key[i]), q = _mm512_set1_ps(query[i]);
      const __m512 ahead = _mm512_set1_ps(next_key[i] * next_decay[i * step]);
      for (int c = 0; c < 2; ++c) {
        float* cell = state + i * kStateColumns + 16 * c;
        const __m512 fresh = _mm512_fmadd_ps(k, update[c], _mm512_mul_ps(a, _mm512_loadu_ps(cell)));
        _mm512_storeu_ps(cell, fresh);
        result[part][c] = _mm512_fmadd_ps(q, fresh, result[part][c]);
        recall[part][c] = _mm512_fmadd_ps(ahead, fresh, recall[part][c]);
      }
    };
    int64_t i = 0;
    for (; i + 2 <= d.dk; i += 2) advance(i, 0), advance(i + 1, 1);
    if (i < d.dk) advance(i, 0);
    float* out = d.out + (t * d.heads + head) * d.dv + column;
    for (int c = 0; c < 2; ++c) {
      _mm512_mask_storeu_ps(out + 16 * c, masks[c], _mm512_add_ps(result[0][c], result[1][c]));
      recalled[c] = _mm512_add_ps(recall[0][c], recall[1][c]);
    }
    key = next_key;
    decay = next_decay;
  }
  for (int64_t i = 0; i < d.dk; ++i)
    for (int c = 0; c < 2; ++c)
      _mm512_mask_storeu_ps(home + i * d.dv + 16 * c, masks[c], _mm512_loadu_ps(state + i * kStateColumns + 16 * c));
}

}  // namespace
