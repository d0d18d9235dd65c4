// Softmax attention over a paged cache, block by block of keys with a running maximum ("FlashAttention", arXiv:2205.14135).
//
// All query heads of a key head, and several tokens, are rows of the same products, so keys and values are packed once for
// all of them. A decode is a run of one token; where few heads share a key, packing would cost more than the products, so keys
// and values are read as they lie.

#pragma once

#include <array>
#include <cmath>

#include "gemm.h"

namespace {

constexpr int64_t kKeys = 4 * kPanel;      // keys of one block
constexpr int64_t kFewQueries = 8;            // heads that share a key, up to which a single token's keys are not packed
constexpr int64_t kWorthSharing = 1 << 16;  // multiplications; below, letting others in takes longer
constexpr int64_t kQueryRows = 9 * kTileRows;  // rows (tokens times heads of a group) that share a packed block

struct Attention {
  const bf16 *query;                  // [rows, kv_heads * group, dk], rows query_stride apart
  const bf16 *keys, *values;          // [blocks, block_tokens, ...]: entries key_stride and value_stride apart, heads dk and dv
  const int64_t *table, *runs;        // [num_runs, table_width] blocks; [num_runs, 3]: first row, rows, tokens before them
  bf16* out;                          // [rows, kv_heads * group, dv]
  int64_t query_stride, key_stride, value_stride, table_width, num_runs, kv_heads, group, dk, dv, block_tokens;
  int64_t window;                     // how many tokens back a token sees, itself included; 0: all
  float scale;
};

struct QueryBlock {  // `count` tokens of a run from `first` on, for the queries of `heads` key heads from `head` on
  int64_t run, first, count, head, heads;
};

struct AttentionBuffers {  // of one thread
  std::vector<bf16> query, keys, values, weights;
  std::vector<float> scores, partial;
  const bf16 *found_keys[kKeys], *found_values[kKeys];
};

inline int64_t sums_width(const Attention& a) { return (a.dv + kPanel - 1) / kPanel * kPanel; }

inline int64_t query_tokens(const Attention& a) { return std::max<int64_t>(1, kQueryRows / a.group); }

inline bool is_lone(const Attention& a, const QueryBlock& block) { return block.count == 1 && a.group <= kFewQueries; }

struct Partial {  // attention to some of the keys, by row: sums of weights times values, sums of weights, base of exponents
  float *sums, *total, *top;

  static int64_t rows(const Attention& a) { return std::max(query_tokens(a), a.kv_heads) * a.group; }
  static int64_t floats(const Attention& a) { return rows(a) * (sums_width(a) + 2); }

  Partial(const Attention& a, float* memory) : sums(memory), total(sums + rows(a) * sums_width(a)), top(total + rows(a)) {}
};

// Positions that some token of the block sees.
struct Reach {
  int64_t begin, end;
};

inline Reach reach(const Attention& a, const QueryBlock& block) {
  const int64_t first_end = a.runs[3 * block.run + 2] + block.first + 1;
  return {a.window ? std::max<int64_t>(0, first_end - a.window) : 0, first_end + block.count - 1};
}

inline const bf16* entry(const Attention& a, const bf16* base, int64_t stride, int64_t run, int64_t position) {
  const int64_t block = a.table[run * a.table_width + position / a.block_tokens];
  return base + (block * a.block_tokens + position % a.block_tokens) * stride;
}

// For vpermt2w: elements of two registers, element by element side by side.
constexpr std::array<uint16_t, 64> kZip = [] {
  std::array<uint16_t, 64> order{};
  for (uint16_t i = 0; i < 32; ++i) order[2 * i] = i, order[2 * i + 1] = 32 + i;
  return order;
}();

struct Zipped {
  __m512i first, second;  // pairs 0 to 15 and 16 to 31
};

// Up to 32 elements of two rows, or of one and zeros, as pairs.
inline Zipped zip(const bf16* even, const bf16* odd, __mmask32 mask) {
  const __m512i a = _mm512_maskz_loadu_epi16(mask, even);
  const __m512i b = odd ? _mm512_maskz_loadu_epi16(mask, odd) : _mm512_setzero_si512();
  return {_mm512_permutex2var_epi16(a, _mm512_loadu_si512(kZip.data()), b),
          _mm512_permutex2var_epi16(a, _mm512_loadu_si512(kZip.data() + 32), b)};
}

// Values of `count` keys as panels over the channels: panel[pair of keys][channel][2], channels padded with zeros to kPanel.
template <class Row>
void pack_values(const Row& row, int64_t count, int64_t width, bf16* packed) {
  for (int64_t j = 0; j < count; j += 2) {
    const bf16 *even = row(j), *odd = j + 1 < count ? row(j + 1) : nullptr;
    bf16* at = packed + j * kPanel;
    for (int64_t c = 0; c < width; c += kPanel, at += kKeys * kPanel) {
      const Zipped pairs = zip(even + c, odd ? odd + c : nullptr, first32(width - c));
      _mm512_storeu_si512(at, pairs.first);
      _mm512_storeu_si512(at + kPanel, pairs.second);
    }
  }
}

// Scores of one row against a block of keys become weights in bf16; keys outside [low, high) weigh nothing. Returns what
// earlier sums have to be multiplied by.
inline float soften(float* scores, float scale, int64_t low, int64_t high, bf16* weights, float& top, float& total) {
  constexpr int kParts = kKeys / 16;
  __m512 s[kParts], best = _mm512_set1_ps(-INFINITY);
  const __m512 factor = _mm512_set1_ps(scale);
  for (int i = 0; i < kParts; ++i) {
    s[i] = _mm512_mul_ps(_mm512_loadu_ps(scores + 16 * i), factor);
    const __mmask16 seen = first16(high - 16 * i) & ~first16(low - 16 * i);
    s[i] = _mm512_mask_mov_ps(_mm512_set1_ps(-INFINITY), seen, s[i]);
    best = _mm512_max_ps(best, s[i]);
  }
  const float before = top;
  top = std::max(before, _mm512_reduce_max_ps(best));
  const __m512 shift = _mm512_set1_ps(top);
  __m512 sum = _mm512_setzero_ps();
  for (int i = 0; i < kParts; ++i) {
    const __m512 weight = exp2_ps(_mm512_sub_ps(s[i], shift));
    sum = _mm512_add_ps(sum, weight);
    _mm256_storeu_si256((__m256i*)(weights + 16 * i), narrow(weight));
  }
  const float kept = std::exp2(before - top);
  total = total * kept + _mm512_reduce_add_ps(sum);
  return kept;
}

inline void gather_query(const Attention& a, const QueryBlock& block, bf16* out) {
  const int64_t width = block.heads * a.group * a.dk, row = a.runs[3 * block.run] + block.first;
  const bf16* from = a.query + row * a.query_stride + block.head * a.group * a.dk;
  for (int64_t t = 0; t < block.count; ++t) std::memcpy(out + t * width, from + t * a.query_stride, size_t(width) * sizeof(bf16));
}

// Rows [first, first + tile) of a block against the packed keys [from, from + count).
inline void attend_tile(const Attention& a, int64_t first_end, int64_t first, int64_t tile, int64_t from, int64_t count,
                        AttentionBuffers& b, const Partial& p) {
  const int64_t last_sees = first_end + (first + tile - 1) / a.group, first_sees = first_end + first / a.group;
  if (from >= last_sees || (a.window && from + count <= first_sees - a.window)) return;
  for (int64_t half = 0; half < count; half += kPanel)
    panel_rows(tile, &b.query[size_t(first * a.dk)], a.dk, &b.keys[size_t(half * a.dk)], a.dk / 2, [&](int r, int part, __m512 sum) {
      _mm512_storeu_ps(&b.scores[size_t(r * kKeys + half + 16 * part)], sum);
    });
  float kept[kTileRows];
  for (int64_t r = 0; r < tile; ++r) {
    const int64_t high = first_end + (first + r) / a.group, low = a.window ? high - a.window : 0;
    kept[r] = soften(&b.scores[size_t(r * kKeys)], a.scale * kLog2e, low - from, std::min(count, high - from),
                     &b.weights[size_t(r * kKeys)], p.top[first + r], p.total[first + r]);
  }
  const int64_t width = sums_width(a);
  for (int64_t c = 0; c < width; c += kPanel)
    panel_rows(tile, b.weights.data(), kKeys, &b.values[size_t(c * kKeys)], (count + 1) / 2, [&](int r, int part, __m512 sum) {
      float* at = p.sums + (first + r) * width + c + 16 * part;
      _mm512_storeu_ps(at, _mm512_fmadd_ps(_mm512_loadu_ps(at), _mm512_set1_ps(kept[r]), sum));
    });
}

// Scores of R query rows against `count` keys as they lie, four at a time.
template <int R>
void score_rows(const bf16* query, const bf16* const* keys, int64_t offset, int64_t count, int64_t depth, float* scores) {
  for (int64_t j = 0; j < count; j += 4) {
    const bf16* key[4];
    for (int i = 0; i < 4; ++i) key[i] = keys[std::min(j + i, count - 1)] + offset;
    __m512 sums[R][4];
    for (auto& row : sums) row[0] = row[1] = row[2] = row[3] = _mm512_setzero_ps();
    for (int64_t k = 0; k < depth; k += 32) {
      const __mmask32 mask = first32(depth - k);
      __m512bh part[4];
      for (int i = 0; i < 4; ++i) part[i] = load_pairs(key[i] + k, mask);
      for (int r = 0; r < R; ++r) {
        const __m512bh row = load_pairs(query + r * depth + k, mask);
        for (int i = 0; i < 4; ++i) sums[r][i] = _mm512_dpbf16_ps(sums[r][i], part[i], row);
      }
    }
    for (int r = 0; r < R; ++r) reduce(sums[r], scores + r * kKeys + j);
  }
}

// sums = sums * kept + weights times `count` values as they lie, for R rows.
template <int R>
void weigh_rows(const bf16* weights, const bf16* const* values, int64_t offset, int64_t count, int64_t width, const float* kept,
                float* sums, int64_t sums_stride) {
  for (int64_t c = 0; c < width; c += 64) {
    __m512 more[R][4];
    for (auto& row : more) row[0] = row[1] = row[2] = row[3] = _mm512_setzero_ps();
    for (int64_t j = 0; j < count; j += 2) {
      const bf16 *even = values[j] + offset + c, *odd = j + 1 < count ? values[j + 1] + offset + c : nullptr;
      const Zipped low = zip(even, odd, first32(width - c));
      const Zipped high = zip(even + 32, odd ? odd + 32 : nullptr, first32(width - c - 32));
      const __m512i pairs[4] = {low.first, low.second, high.first, high.second};
      for (int r = 0; r < R; ++r) {
        const __m512bh weight = broadcast_pair(weights + r * kKeys + j);
        for (int i = 0; i < 4; ++i) more[r][i] = _mm512_dpbf16_ps(more[r][i], (__m512bh)pairs[i], weight);
      }
    }
    for (int r = 0; r < R; ++r)
      for (int i = 0; i < 4 && c + 16 * i < sums_stride; ++i) {
        float* at = sums + r * sums_stride + c + 16 * i;
        _mm512_storeu_ps(at, _mm512_fmadd_ps(_mm512_loadu_ps(at), _mm512_set1_ps(kept[r]), more[r][i]));
      }
  }
}

// Where the entries of positions [from, from + count) lie. They are read as a whole before any head's share of them is used.
inline void find_entries(const Attention& a, const bf16* base, int64_t stride, int64_t run, int64_t from, int64_t count,
                         const bf16** found) {
  for (int64_t j = 0; j < count;) {
    const int64_t here = std::min(count - j, a.block_tokens - (from + j) % a.block_tokens);
    const bf16* first = entry(a, base, stride, run, from + j);
    read_through(first, here * stride);
    for (int64_t i = 0; i < here; ++i) found[j + i] = first + i * stride;
    j += here;
  }
}

// Rows [first, first + rows) of a lone block, queries of one key head, up to four at a time.
template <int R = 4>
void attend_lone(const Attention& a, int64_t head, int64_t first, int64_t rows, int64_t count, AttentionBuffers& b,
                 const Partial& p) {
  if constexpr (R > 1) {
    if (rows < R) return attend_lone<R - 1>(a, head, first, rows, count, b, p);
  }
  score_rows<R>(&b.query[size_t(first * a.dk)], b.found_keys, head * a.dk, count, a.dk, b.scores.data());
  float kept[R];
  for (int64_t r = 0; r < R; ++r)
    kept[r] = soften(&b.scores[size_t(r * kKeys)], a.scale * kLog2e, 0, count, &b.weights[size_t(r * kKeys)], p.top[first + r],
                     p.total[first + r]);
  const int64_t width = sums_width(a);
  weigh_rows<R>(b.weights.data(), b.found_values, head * a.dv, count, a.dv, kept, p.sums + first * width, width);
  if (rows > R) attend_lone(a, head, first + R, rows - R, count, b, p);
}

// All heads of one token against positions [from, from + count).
inline void attend_found(const Attention& a, const QueryBlock& block, int64_t from, int64_t count, AttentionBuffers& b,
                         const Partial& p) {
  find_entries(a, a.keys, a.key_stride, block.run, from, count, b.found_keys);
  find_entries(a, a.values, a.value_stride, block.run, from, count, b.found_values);
  for (int64_t h = 0; h < block.heads; ++h) attend_lone(a, block.head + h, h * a.group, a.group, count, b, p);
}

inline void attend_packed(const Attention& a, const QueryBlock& block, int64_t from, int64_t count, AttentionBuffers& b,
                          const Partial& p) {
  const int64_t first_end = a.runs[3 * block.run + 2] + block.first + 1;
  const bf16 *keys = a.keys + block.head * a.dk, *values = a.values + block.head * a.dv;
  b.keys.resize(size_t(kKeys * a.dk));
  b.values.resize(size_t(kKeys * sums_width(a)));
  for (int64_t half = 0; half < count; half += kPanel)
    pack_rows([&](int64_t i) { return entry(a, keys, a.key_stride, block.run, from + half + i); },
              std::min(kPanel, count - half), a.dk, &b.keys[size_t(half * a.dk)]);
  pack_values([&](int64_t j) { return entry(a, values, a.value_stride, block.run, from + j); }, count, a.dv, b.values.data());
  for_tiles(block.count * a.group,
            [&](int64_t first, int64_t tile) { attend_tile(a, first_end, first, tile, from, count, b, p); });
}

// Attention of a block to positions [begin, end).
inline void attend_range(const Attention& a, const QueryBlock& block, Reach range, AttentionBuffers& b, const Partial& p) {
  const int64_t rows = block.count * block.heads * a.group;
  b.query.resize(size_t(rows * a.dk));
  b.scores.resize(size_t(kTileRows * kKeys));
  b.weights.resize(size_t(kTileRows * kKeys));
  std::fill_n(p.sums, rows * sums_width(a), 0.0f);
  std::fill_n(p.total, rows, 0.0f);
  std::fill_n(p.top, rows, -1e30f);
  gather_query(a, block, b.query.data());
  for (int64_t from = range.begin; from < range.end; from += kKeys) {
    const int64_t count = std::min(kKeys, range.end - from);
    if (is_lone(a, block)) attend_found(a, block, from, count, b, p);
    else attend_packed(a, block, from, count, b, p);
  }
}

inline void finish_block(const Attention& a, const QueryBlock& block, const Partial& p) {
  const int64_t row = a.runs[3 * block.run] + block.first, width = sums_width(a);
  const int64_t queries = block.heads * a.group;  // of a token
  for (int64_t r = 0; r < block.count * queries; ++r) {
    const __m512 inverse = _mm512_set1_ps(1.0f / p.total[r]);
    bf16* out = a.out + (((row + r / queries) * a.kv_heads + block.head) * a.group + r % queries) * a.dv;
    for (int64_t c = 0; c < a.dv; c += 16) {
      const __m512 sum = _mm512_mul_ps(_mm512_loadu_ps(p.sums + r * width + c), inverse);
      _mm256_mask_storeu_epi16(out + c, first16(a.dv - c), narrow(sum));
    }
  }
}

// Adds `more`, attention of the same rows to other keys, to `p`.
inline void merge(const Partial& p, const Partial& more, int64_t rows, int64_t width) {
  for (int64_t r = 0; r < rows; ++r) {
    const float top = std::max(p.top[r], more.top[r]);
    const float mine = std::exp2(p.top[r] - top), theirs = std::exp2(more.top[r] - top);
    p.top[r] = top;
    p.total[r] = p.total[r] * mine + more.total[r] * theirs;
    for (int64_t c = r * width; c < (r + 1) * width; ++c) p.sums[c] = p.sums[c] * mine + more.sums[c] * theirs;
  }
}

inline std::vector<QueryBlock> query_blocks(const Attention& a) {
  const int64_t tokens = query_tokens(a);
  std::vector<QueryBlock> blocks;
  for (int64_t run = 0; run < a.num_runs; ++run)
    for (int64_t rows = a.runs[3 * run + 1], first = 0; first < rows; first += tokens) {
      const QueryBlock whole{run, first, std::min(tokens, rows - first), 0, a.kv_heads};
      if (is_lone(a, whole)) blocks.push_back(whole);
      else
        for (int64_t head = 0; head < a.kv_heads; ++head) blocks.push_back({run, first, whole.count, head, 1});
    }
  return blocks;
}

// Few blocks: several threads share the keys of one, in up to this many parts.
inline int64_t most_parts(int64_t num_blocks, int64_t threads) {
  return num_blocks >= 2 * threads || threads == 1 ? 1 : std::max<int64_t>(1, 4 * threads / num_blocks);
}

// Floats that `attend` needs in memory that all threads see, whatever the lengths.
inline int64_t shared_floats(const Attention& a, int64_t threads) {
  const int64_t num = int64_t(query_blocks(a).size()), parts = most_parts(num, threads);
  return parts == 1 ? 0 : num * parts * Partial::floats(a);
}

inline void attend(Crew& crew, const Attention& a, float* shared) {
  const std::vector<QueryBlock> blocks = query_blocks(a);
  const int64_t num = int64_t(blocks.size());
  int64_t longest = 0, work = 0;
  for (const QueryBlock& block : blocks) {
    const int64_t keys = reach(a, block).end - reach(a, block).begin;
    longest = std::max(longest, keys);
    const int64_t packing = is_lone(a, block) ? 0 : kTileRows;  // of a key costs about a tile of rows
    work += keys * (a.dk + a.dv) * (block.count * block.heads * a.group + packing);
  }
  const int64_t most = most_parts(num, crew.pool.num_threads());
  const int64_t worth = is_lone(a, blocks.front()) ? kKeys : 4 * kKeys;  // keys of a part, half of them at least
  const int64_t parts = most == 1 ? 1 : std::clamp<int64_t>((longest + worth / 2) / worth, 1, most);
  const auto partial = [&](int64_t item) { return Partial(a, shared + item * Partial::floats(a)); };
  const auto attend_part = [&](int64_t item) {
    thread_local AttentionBuffers buffers;
    buffers.partial.resize(size_t(Partial::floats(a)));
    const QueryBlock& block = blocks[size_t(item / parts)];
    const Reach all = reach(a, block);
    const int64_t steps = (all.end - all.begin + kKeys - 1) / kKeys, part = item % parts;
    const Reach mine{all.begin + steps * part / parts * kKeys, std::min(all.end, all.begin + steps * (part + 1) / parts * kKeys)};
    const Partial sums = parts == 1 ? Partial(a, buffers.partial.data()) : partial(item);
    attend_range(a, block, mine, buffers, sums);
    if (parts == 1) finish_block(a, block, sums);
  };
  const int64_t items = num * parts, chunks = work < kWorthSharing ? 1 : items;
  crew.share(chunks, [&](int64_t chunk) {  // from the last on: the longest blocks of a prompt come early
    for (int64_t item = items - 1 - chunk; item >= 0; item -= chunks) attend_part(item);
  });
  if (parts == 1) return;
  crew.share(1, [&](int64_t) {
    for (int64_t i = 0; i < num; ++i) {
      const Partial whole = partial(i * parts);
      for (int64_t part = 1; part < parts; ++part) merge(whole, partial(i * parts + part), blocks[size_t(i)].count * blocks[size_t(i)].heads * a.group, sums_width(a));
      finish_block(a, blocks[size_t(i)], whole);
    }
  });
}

}  // namespace
