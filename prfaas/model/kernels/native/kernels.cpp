// Entry points, called through ctypes: plain C over raw pointers.
//
// The caller checks shapes, dtypes and contiguity. bf16 is passed as uint16_t. Needs AVX512 with BF16 (prfaas_supported).

#include "attention.h"
#include "delta.h"
#include "gemm.h"
#include "pool.h"
#include "rows.h"

extern "C" {

int prfaas_supported() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bf16");
}

Pool* prfaas_pool_create(int64_t threads) {
  auto* pool = new Pool;
  for (int64_t i = 1; i < threads; ++i) pool->threads.emplace_back([pool] { pool->loop(); });
  return pool;
}

void prfaas_pool_destroy(Pool* pool) {
  pool->stopping.store(true, std::memory_order_release);
  pool->ticket.fetch_add(uint64_t(1) << 32, std::memory_order_acq_rel);
  pool->ticket.notify_all();
  for (auto& thread : pool->threads) thread.join();
  delete pool;
}

// out[m, n] = x[m, :] . w[n, :] + bias[n]; see Product.
void prfaas_linear(Pool* pool, const bf16* x, int64_t x_stride, const bf16* w, const bf16* bias, bf16* out, int64_t m, int64_t n,
                   int64_t k) {
  product<bf16>(pool, {x, w, bias, out, x_stride, m, n, k});
}

void prfaas_linear_float(Pool* pool, const bf16* x, int64_t x_stride, const bf16* w, const bf16* bias, float* out, int64_t m,
                         int64_t n, int64_t k) {
  product<float>(pool, {x, w, bias, out, x_stride, m, n, k});
}

// Rows of width d, `more` and `sum` null together; see norm_row.
void prfaas_norm(Pool* pool, const bf16* x, const bf16* more, bf16* sum, const float* weight, bf16* out, int64_t rows, int64_t d,
                 float eps) {
  for_rows(pool, rows, d, [&](int64_t first, int64_t last) {
    for (int64_t at = first * d; at < last * d; at += d)
      norm_row(x + at, more ? more + at : nullptr, more ? sum + at : nullptr, weight, out + at, d, eps);
  });
}

// x: [rows, 2d], out: [rows, d]; see gate_row.
void prfaas_silu_gate(Pool* pool, const bf16* x, bf16* out, int64_t rows, int64_t d) {
  for_rows(pool, rows, 2 * d, [&](int64_t first, int64_t last) {
    for (int64_t r = first; r < last; ++r) gate_row(x + 2 * r * d, out + r * d, d);
  });
}

// x: [rows, heads, d] with rows x_stride apart; cos, sin: [rows, half]; out: [rows, heads, d]; see rotate_row.
void prfaas_rotate(Pool* pool, const bf16* x, int64_t x_stride, const bf16* cos, const bf16* sin, bf16* out, int64_t rows,
                   int64_t heads, int64_t half, int64_t d) {
  for_rows(pool, rows, heads * d, [&](int64_t first, int64_t last) {
    for (int64_t r = first; r < last; ++r)
      for (int64_t h = 0; h < heads; ++h)
        rotate_row(x + r * x_stride + h * d, cos + r * half, sin + r * half, out + (r * heads + h) * d, half, d);
  });
}

// Copies row i of x, `bytes` long and x_stride_bytes from the next, to place slots[i] of out.
void prfaas_store(const char* x, int64_t x_stride_bytes, const int64_t* slots, char* out, int64_t rows, int64_t bytes) {
  for (int64_t r = 0; r < rows; ++r) std::memcpy(out + slots[r] * bytes, x + r * x_stride_bytes, size_t(bytes));
}

// See Attention.
void prfaas_attend(Pool* pool, const bf16* query, int64_t query_stride, const bf16* keys, int64_t key_stride, const bf16* values,
                   int64_t value_stride, const int64_t* table, int64_t table_width, const int64_t* runs, int64_t num_runs, bf16* out,
                   int64_t kv_heads, int64_t group, int64_t dk, int64_t dv, int64_t block_tokens, int64_t window, float scale) {
  attend(pool, {query, keys, values, table, runs, out, query_stride, key_stride, value_stride, table_width, num_runs, kv_heads, group,
                dk, dv, block_tokens, window, scale});
}

// Run r owns tokens [runs[3r+1], runs[3r+2]) and updates slot runs[3r]; see Delta.
void prfaas_delta(Pool* pool, const float* query, const float* key, const float* value, const float* decay, const float* beta,
                  float* states, float* out, const int64_t* runs, int64_t num_runs, int64_t heads, int64_t dk, int64_t dv,
                  int64_t decay_width) {
  const Delta d{query, key, value, decay, beta, states, out, heads, dk, dv, decay_width};
  const int64_t tiles = (dv + kStateColumns - 1) / kStateColumns;
  parallel(pool, num_runs * heads * tiles, [&](int64_t item) {
    const int64_t* run = runs + 3 * (item / (heads * tiles));
    const int64_t rest = item % (heads * tiles);
    delta_columns(d, rest / tiles, rest % tiles * kStateColumns, run[0], run[1], run[2]);
  });
}
}
