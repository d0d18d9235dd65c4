// Matrix products in bf16 with float sums.
//
// Few rows: weight rows are read once, one after the other, and summed across the register. Many rows: a panel of weight rows is
// transposed into pairs (element pairs of 16 rows side by side) that stays in L2 while all input rows pass by it.

#pragma once

#include <algorithm>
#include <vector>

#include "pool.h"
#include "simd.h"

namespace {

template <class Out>  // bf16 or float
struct Product {      // out[m, n] = x[m, :] . w[n, :] + bias[n]; rows of x and out are x_stride and n apart, w is contiguous
  const bf16 *x, *w, *bias;
  Out* out;
  int64_t x_stride, m, n, k;
};

// ---- few rows ----------------------------------------------------------------------------------------------------

// Sums of four registers, one in each element of every 128-bit lane, still to be added over the lanes.
inline __m512 fold(__m512 a, __m512 b, __m512 c, __m512 d) {
  const __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
  const __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
  const __m512d low = _mm512_unpacklo_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd));
  const __m512d high = _mm512_unpackhi_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd));
  return _mm512_add_ps(_mm512_castpd_ps(low), _mm512_castpd_ps(high));
}

// totals[i] = sum of the elements of sums[i]. Four reductions together cost little more than one.
template <int N>
inline void reduce(const __m512 (&sums)[N], float* totals) {
  int i = 0;
  for (; i + 4 <= N; i += 4) {
    const __m512 all = fold(sums[i], sums[i + 1], sums[i + 2], sums[i + 3]);
    const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(all), _mm512_extractf32x8_ps(all, 1));
    _mm_storeu_ps(totals + i, _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1)));
  }
  for (; i < N; ++i) totals[i] = _mm512_reduce_add_ps(sums[i]);
}

// N neighbouring columns of M rows of the result. Few input rows meet one weight row after the other, so that memory is read
// in one stream: several streams side by side halve what one core gets. More input rows take long enough over two weight rows
// to ask for the next two, in order, meanwhile.
template <int M, int N, class Out>
void dot(const Product<Out>& p, int64_t row, int64_t column) {
  const bf16 *x = p.x + row * p.x_stride, *w = p.w + column * p.k, *ahead = w + N * p.k;
  __m512 sums[N][M];
  for (auto& of_column : sums)
    for (auto& sum : of_column) sum = _mm512_setzero_ps();
  const auto add = [&](int64_t k, const auto&... mask) {
    __m512bh weight[N];
    for (int n = 0; n < N; ++n) weight[n] = load_pairs(w + n * p.k + k, mask...);
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
      const __m512bh input = load_pairs(x + m * p.x_stride + k, mask...);
      for (int n = 0; n < N; ++n) sums[n][m] = _mm512_dpbf16_ps(sums[n][m], weight[n], input);
    }
  };
  int64_t k = 0;
  for (; k + 32 <= p.k; k += 32) {
    if constexpr (N > 1)
      for (int n = 0; n < N; ++n, ahead += 32) _mm_prefetch(ahead, _MM_HINT_T0);
    add(k);
  }
  if (k < p.k) add(k, first32(p.k - k));
  for (int n = 0; n < N; ++n) {
    float totals[M];
    reduce(sums[n], totals);
    const float added = p.bias ? widen(p.bias[column + n]) : 0.0f;
    for (int m = 0; m < M; ++m) put(p.out + (row + m) * p.n + column + n, totals[m] + added);
  }
}

constexpr int64_t kFewRows = 8;  // above this, transposing the weights pays

// Columns [first, last) of all rows, M rows at a time and then those that are left.
template <int M = kFewRows, class Out>
void dot_columns(const Product<Out>& p, int64_t row, int64_t first, int64_t last) {
  constexpr int N = M < 4 ? 1 : 2;
  for (; row + M <= p.m; row += M) {
    int64_t column = first;
    for (; column + N <= last; column += N) dot<M, N>(p, row, column);
    for (; column < last; ++column) dot<M, 1>(p, row, column);
  }
  if constexpr (M > 1) {
    if (row < p.m) dot_columns<M - 1>(p, row, first, last);
  }
}

// ---- many rows ---------------------------------------------------------------------------------------------------

constexpr int64_t kPanel = 32;   // columns of the result that one tile computes: two registers
constexpr int64_t kTileRows = 14;  // with two registers of columns each: 28 sums, all in registers

inline void transpose16(__m512i (&r)[16]) {  // 16 x 16 elements of 32 bits
  __m512i t[16];
  for (int i = 0; i < 8; ++i) {
    t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
    t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
  }
  for (int i = 0; i < 4; ++i) {
    r[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
    r[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
    r[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
    r[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
  }
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm512_shuffle_i32x4(r[i], r[4 + i], 0x88);
    t[4 + i] = _mm512_shuffle_i32x4(r[i], r[4 + i], 0xdd);
    t[8 + i] = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], 0x88);
    t[12 + i] = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], 0xdd);
  }
  for (int i = 0; i < 4; ++i) {
    r[i] = _mm512_shuffle_i32x4(t[i], t[8 + i], 0x88);
    r[8 + i] = _mm512_shuffle_i32x4(t[i], t[8 + i], 0xdd);
    r[4 + i] = _mm512_shuffle_i32x4(t[4 + i], t[12 + i], 0x88);
    r[12 + i] = _mm512_shuffle_i32x4(t[4 + i], t[12 + i], 0xdd);
  }
}

// Rows row(0) .. row(count - 1) of `depth` elements as panel[pair][column][2], columns padded with zeros to kPanel.
template <class Row>
void pack_rows(const Row& row, int64_t count, int64_t depth, bf16* panel) {
  constexpr int64_t kAtOnce = 768;  // of 16 rows these are most of L1
  for (int64_t half = 0; half < kPanel; half += 16) {
    const int64_t here = std::clamp<int64_t>(count - half, 0, 16);
    const bf16* rows[16];
    for (int64_t i = 0; i < here; ++i) rows[i] = row(half + i);
    for (int64_t k = 0; k < depth; k += 32) {
      if (k % kAtOnce == 0)
        for (int64_t i = 0; i < here; ++i) read_through(rows[i] + k, std::min(kAtOnce, depth - k));
      const __mmask32 mask = first32(depth - k);
      __m512i r[16];
      for (int64_t i = 0; i < 16; ++i) r[i] = i < here ? _mm512_maskz_loadu_epi16(mask, rows[i] + k) : _mm512_setzero_si512();
      transpose16(r);
      const int64_t pairs = std::min<int64_t>(16, (depth - k + 1) / 2);
      for (int64_t p = 0; p < pairs; ++p) _mm512_storeu_si512(panel + ((k / 2 + p) * kPanel + half) * 2, r[p]);
    }
  }
}

// store(r, half, sums) for R rows of a (a_stride apart) times one panel of `pairs` element pairs.
template <int R, class Store>
inline void panel_tile(const bf16* a, int64_t a_stride, const bf16* panel, int64_t pairs, const Store& store) {
  __m512 sum[R][2];
  for (auto& row : sum) row[0] = row[1] = _mm512_setzero_ps();
  for (int64_t p = 0; p < pairs; ++p) {
    const __m512bh left = load_pairs(panel + p * 2 * kPanel), right = load_pairs(panel + p * 2 * kPanel + 32);
#pragma GCC unroll 14
    for (int r = 0; r < R; ++r) {
      const __m512bh pair = broadcast_pair(a + r * a_stride + 2 * p);
      sum[r][0] = _mm512_dpbf16_ps(sum[r][0], left, pair);
      sum[r][1] = _mm512_dpbf16_ps(sum[r][1], right, pair);
    }
  }
#pragma GCC unroll 14
  for (int r = 0; r < R; ++r) {
    store(r, 0, sum[r][0]);
    store(r, 1, sum[r][1]);
  }
}

// `panel_tile` for a row count known at run time, 1 to kTileRows.
template <int R = kTileRows, class Store>
inline void panel_rows(int64_t rows, const bf16* a, int64_t a_stride, const bf16* panel, int64_t pairs, const Store& store) {
  if constexpr (R > 1) {
    if (rows < R) return panel_rows<R - 1>(rows, a, a_stride, panel, pairs, store);
  }
  panel_tile<R>(a, a_stride, panel, pairs, store);
}

// Splits `rows` into tiles of almost equal height: body(first, count).
template <class Body>
inline void for_tiles(int64_t rows, const Body& body) {
  const int64_t tiles = (rows + kTileRows - 1) / kTileRows;
  for (int64_t t = 0; t < tiles; ++t) {
    const int64_t first = rows * t / tiles;
    body(first, rows * (t + 1) / tiles - first);
  }
}

// Columns [column, column + width) of rows [first, last).
template <class Out>
void product_block(const Product<Out>& p, int64_t column, int64_t width, int64_t first, int64_t last) {
  thread_local std::vector<bf16> held;
  const int64_t panels = (width + kPanel - 1) / kPanel, pairs = p.k / 2, panel_size = p.k * kPanel;
  if (int64_t(held.size()) < panels * panel_size) held.resize(size_t(panels * panel_size));
  bf16* packed = held.data();
  for (int64_t i = 0; i < panels; ++i) {
    const bf16* w = p.w + (column + i * kPanel) * p.k;
    pack_rows([&](int64_t r) { return w + r * p.k; }, std::min(kPanel, width - i * kPanel), p.k, packed + i * panel_size);
  }
  for_tiles(last - first, [&](int64_t start, int64_t count) {
    const int64_t row = first + start;
    for (int64_t i = 0; i < panels; ++i) {
      const int64_t at = column + i * kPanel;
      panel_rows(count, p.x + row * p.x_stride, p.x_stride, packed + i * panel_size, pairs, [&](int r, int half, __m512 sum) {
        const int64_t n = at + 16 * half;
        const __mmask16 mask = first16(column + width - n);
        if (p.bias) sum = _mm512_add_ps(sum, widen(_mm256_maskz_loadu_epi16(mask, p.bias + n)));
        put(p.out + (row + r) * p.n + n, mask, sum);
      });
    }
  });
}

template <class Out>
void product_few_rows(Crew& crew, const Product<Out>& p) {
  // Streams have to be long to run at full speed, and their number even for few threads to end together.
  constexpr int64_t kWorth = 65536, kLong = 131072;  // elements
  const int64_t size = p.n * p.k, chunks = size < kWorth ? 1 : std::min<int64_t>((size / kLong + 4) / 4 * 4, 64);
  crew.share(chunks, [&](int64_t chunk) { dot_columns(p, 0, p.n * chunk / chunks, p.n * (chunk + 1) / chunks); });
}

template <class Out>
void product_many_rows(Crew& crew, const Product<Out>& p) {  // k is even
  constexpr int64_t kColumns = 2 * kPanel, kRows = 18 * kTileRows;
  const int64_t across = (p.n + kColumns - 1) / kColumns, down = (p.m + kRows - 1) / kRows;
  crew.share(across * down, [&](int64_t item) {
    const int64_t column = item % across * kColumns, block = item / across;
    product_block(p, column, std::min(kColumns, p.n - column), p.m * block / down, p.m * (block + 1) / down);
  });
}

template <class Out>
void product(Crew& crew, const Product<Out>& p) {
  if (p.m <= kFewRows || p.k % 2) product_few_rows(crew, p);
  else product_many_rows(crew, p);
}

}  // namespace
