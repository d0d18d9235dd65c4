// Entry points, called through ctypes: plain C over raw pointers.
//
// The caller checks shapes, dtypes and contiguity. bf16 is passed as uint16_t. Needs AVX512 with BF16 (prfaas_supported).

#include <sys/mman.h>

#include <utility>

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
  for (int64_t i = 1; i < threads; ++i) pool->threads.emplace_back([pool, i] { pool->loop(i); });
  return pool;
}

void prfaas_pool_destroy(Pool* pool) {
  pool->stopping.store(true, std::memory_order_release);
  pool->gate.fetch_add(Pool::kJob, std::memory_order_acq_rel);
  pool->gate.notify_all();
  for (auto& thread : pool->threads) thread.join();
  delete pool;
}

// From now on calls are written down as well as run, until prfaas_record_end, which returns them.
void prfaas_record_begin(Pool* pool) { pool->tape = new std::vector<Call>; }

std::vector<Call>* prfaas_record_end(Pool* pool) { return std::exchange(pool->tape, nullptr); }

// Runs recorded calls again, on the same addresses, as one job.
void prfaas_replay(Pool* pool, const std::vector<Call>* calls) { replay(pool, *calls); }

void prfaas_forget(std::vector<Call>* calls) { delete calls; }

// Asks for huge pages under `bytes` at `address`, rounded outwards. What the system refuses stays as it is.
void prfaas_settle(uintptr_t address, int64_t bytes) {
  constexpr uintptr_t kHuge = uintptr_t(1) << 21;
  constexpr int kCollapse = 25;  // MADV_COLLAPSE, Linux 6.1
  for (uintptr_t at = address & ~(kHuge - 1); at < address + uintptr_t(bytes); at += kHuge) {
    madvise(reinterpret_cast<void*>(at), kHuge, kCollapse);
  }
}

// out[m, n] = x[m, :] . w[n, :] + bias[n]; see Product.
void prfaas_linear(Pool* pool, const bf16* x, int64_t x_stride, const bf16* w, const bf16* bias, bf16* out, int64_t m, int64_t n,
                   int64_t k) {
  const Product<bf16> p{x, w, bias, out, x_stride, m, n, k};
  perform(pool, [p](Crew& crew) { product(crew, p); });
}

void prfaas_linear_float(Pool* pool, const bf16* x, int64_t x_stride, const bf16* w, const bf16* bias, float* out, int64_t m,
                         int64_t n, int64_t k) {
  const Product<float> p{x, w, bias, out, x_stride, m, n, k};
  perform(pool, [p](Crew& crew) { product(crew, p); });
}

// Rows of width d, `more` and `sum` null together; see norm_row.
void prfaas_norm(Pool* pool, const bf16* x, const bf16* more, bf16* sum, const float* weight, bf16* out, int64_t rows, int64_t d,
                 float eps) {
  perform(pool, [=](Crew& crew) {
    for_rows(crew, rows, d, [&](int64_t first, int64_t last) {
      for (int64_t at = first * d; at < last * d; at += d)
        norm_row(x + at, more ? more + at : nullptr, more ? sum + at : nullptr, weight, out + at, d, eps);
    });
  });
}

// out[rows, hidden] = (silu(gate) * up) . down^T, where [gate | up] = x . gate_up^T. gate_up: [2 * inner, hidden], gate rows
// first; down: [hidden, inner].
void prfaas_gated_mlp(Pool* pool, const bf16* x, int64_t x_stride, const bf16* gate_up, const bf16* down, bf16* out, int64_t rows,
                      int64_t hidden, int64_t inner) {
  pool->reserve(3 * rows * inner * int64_t(sizeof(bf16)));
  const Product<bf16> opening{x, gate_up, nullptr, nullptr, x_stride, rows, 2 * inner, hidden};
  perform(pool, [=](Crew& crew) {
    bf16 *both = crew.pool.scratch<bf16>(), *mixed = both + 2 * rows * inner;
    Product<bf16> p = opening;
    p.out = both;
    product(crew, p);
    for_rows(crew, rows, 2 * inner, [&](int64_t first, int64_t last) {
      for (int64_t r = first; r < last; ++r) gate_row(both + 2 * r * inner, mixed + r * inner, inner);
    });
  });
  const Product<bf16> closing{nullptr, down, nullptr, out, inner, rows, hidden, inner};
  perform(pool, [=](Crew& crew) {
    Product<bf16> p = closing;
    p.x = crew.pool.scratch<bf16>() + 2 * rows * inner;
    product(crew, p);
  });
}

// Copies row i of x, `bytes` long and x_stride_bytes from the next, to place slots[i] of out.
void prfaas_store(Pool* pool, const char* x, int64_t x_stride_bytes, const int64_t* slots, char* out, int64_t rows, int64_t bytes) {
  perform(pool, [=](Crew& crew) {
    crew.share(1, [&](int64_t) {
      for (int64_t r = 0; r < rows; ++r) std::memcpy(out + slots[r] * bytes, x + r * x_stride_bytes, size_t(bytes));
    });
  });
}

// Turns queries and keys, writes keys and values into the cache, and attends. Rows of query, key and value are their strides
// apart; cos, sin: [rows, half]; slots: [rows] places in the cache. See Attention.
void prfaas_attend(Pool* pool, const bf16* query, int64_t query_stride, const bf16* key, int64_t key_stride, const bf16* value,
                   int64_t value_stride, const bf16* cos, const bf16* sin, int64_t half, const int64_t* slots, int64_t rows,
                   bf16* keys, bf16* values, const int64_t* table, int64_t table_width, const int64_t* runs, int64_t num_runs,
                   bf16* out, int64_t kv_heads, int64_t group, int64_t dk, int64_t dv, int64_t block_tokens, int64_t window,
                   float scale) {
  const int64_t heads = kv_heads * group, query_width = heads * dk, key_width = kv_heads * dk, value_width = kv_heads * dv;
  const Attention plan{nullptr, keys, values, table, runs, out, query_width, key_width, value_width, table_width, num_runs,
                       kv_heads, group, dk, dv, block_tokens, window, scale};
  const int64_t turned_bytes = (rows * query_width * int64_t(sizeof(bf16)) + 63) / 64 * 64;
  pool->reserve(turned_bytes + shared_floats(plan, pool->num_threads()) * int64_t(sizeof(float)));
  perform(pool, [=](Crew& crew) {
    bf16* turned = crew.pool.scratch<bf16>();
    for_rows(crew, rows, query_width, [&](int64_t first, int64_t last) {
      for (int64_t r = first; r < last; ++r) {
        const bf16 *c = cos + r * half, *s = sin + r * half;
        for (int64_t h = 0; h < heads; ++h)
          rotate_row(query + r * query_stride + h * dk, c, s, turned + r * query_width + h * dk, half, dk);
        for (int64_t h = 0; h < kv_heads; ++h)
          rotate_row(key + r * key_stride + h * dk, c, s, keys + slots[r] * key_width + h * dk, half, dk);
        std::memcpy(values + slots[r] * value_width, value + r * value_stride, size_t(value_width) * sizeof(bf16));
      }
    });
    Attention a = plan;
    a.query = turned;
    attend(crew, a, crew.pool.scratch<float>() + turned_bytes / int64_t(sizeof(float)));
  });
}

// One key for all heads: latents [blocks, block_tokens, dk], whose first dv channels are the value. query: [rows, heads, dk].
void prfaas_attend_latent(Pool* pool, const bf16* query, const bf16* latents, const int64_t* table, int64_t table_width,
                          const int64_t* runs, int64_t num_runs, bf16* out, int64_t heads, int64_t dk, int64_t dv,
                          int64_t block_tokens, float scale) {
  const Attention a{query, latents, latents, table, runs, out, heads * dk, dk, dk, table_width, num_runs, 1, heads, dk, dv,
                    block_tokens, 0, scale};
  pool->reserve(shared_floats(a, pool->num_threads()) * int64_t(sizeof(float)));
  perform(pool, [a](Crew& crew) { attend(crew, a, crew.pool.scratch<float>()); });
}

// Run r owns tokens [runs[3r+1], runs[3r+2]) and updates slot runs[3r]; see Delta.
void prfaas_delta(Pool* pool, const float* query, const float* key, const float* value, const float* decay, const float* beta,
                  float* states, float* out, const int64_t* runs, int64_t num_runs, int64_t heads, int64_t dk, int64_t dv,
                  int64_t decay_width) {
  const Delta d{query, key, value, decay, beta, states, out, heads, dk, dv, decay_width};
  perform(pool, [=](Crew& crew) {
    crew.share(num_runs * heads, [&](int64_t item) {
      const int64_t* run = runs + 3 * (item / heads);
      for (int64_t start = run[1]; start < run[2]; start += kDeltaTokens) {  // all columns, while these tokens' rows are in L2
        const int64_t stop = std::min(start + kDeltaTokens, run[2]);
        const float* factors = decay_factors(d, item % heads, start, stop);
        for (int64_t column = 0; column < dv; column += kStateColumns)
          delta_columns(d, item % heads, column, run[0], start, stop, factors);
      }
    });
  });
}
}
