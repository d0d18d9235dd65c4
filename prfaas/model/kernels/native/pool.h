// Threads that share the chunks of one job at a time.
//
// A thread claims chunks one by one, so a thread that the system has put aside holds up at most one chunk.

#pragma once

#include <immintrin.h>

#include <atomic>
#include <cstdint>
#include <thread>
#include <type_traits>
#include <vector>

namespace {

struct Pool {
  std::vector<std::thread> threads;
  std::atomic<uint64_t> ticket{0};  // high half: job number, low half: chunks nobody has claimed yet
  std::atomic<int64_t> pending{0};
  std::atomic<bool> stopping{false};
  void (*run)(void*, int64_t) = nullptr;
  void* context = nullptr;
  std::vector<uint16_t> held;

  // Room for `count` bf16 values that one kernel uses while it runs.
  uint16_t* scratch(size_t count) {
    if (held.size() < count) held.resize(count);
    return held.data();
  }

  // Claims one chunk. The job's fields stay valid while a claimed chunk is pending, so they are read after the claim.
  bool work() {
    uint64_t seen = ticket.load(std::memory_order_acquire);
    while (uint32_t(seen) != 0) {
      if (ticket.compare_exchange_weak(seen, seen - 1, std::memory_order_acq_rel)) {
        run(context, int64_t(uint32_t(seen)) - 1);
        pending.fetch_sub(1, std::memory_order_acq_rel);
        return true;
      }
    }
    return false;
  }

  void loop() {
    constexpr int kSpins = 8000;  // about 100 microseconds: longer than the gap between two kernels, on a busy machine too
    for (;;) {
      if (work()) continue;
      const uint64_t idle = ticket.load(std::memory_order_acquire);
      if (stopping.load(std::memory_order_acquire)) return;
      if (uint32_t(idle) != 0) continue;
      int spins = 0;
      while (spins < kSpins && ticket.load(std::memory_order_relaxed) == idle) {
        _mm_pause();
        ++spins;
      }
      if (spins == kSpins) ticket.wait(idle, std::memory_order_acquire);
    }
  }
};

template <class Body>
void parallel(Pool* pool, int64_t chunks, Body&& body) {  // without a pool: by the caller alone
  if (chunks <= 1 || pool == nullptr || pool->threads.empty()) {
    for (int64_t i = 0; i < chunks; ++i) body(i);
    return;
  }
  using Stored = std::remove_reference_t<Body>;
  pool->run = [](void* context, int64_t chunk) { (*static_cast<Stored*>(context))(chunk); };
  pool->context = const_cast<void*>(static_cast<const void*>(&body));
  pool->pending.store(chunks, std::memory_order_release);
  const uint64_t job = (pool->ticket.load(std::memory_order_relaxed) >> 32) + 1;
  pool->ticket.store(job << 32 | uint64_t(chunks), std::memory_order_release);
  pool->ticket.notify_all();
  while (pool->work()) {
  }
  for (int spins = 0; pool->pending.load(std::memory_order_acquire) != 0; ++spins) {
    if (spins < 4000) _mm_pause();
    else std::this_thread::yield();
  }
}

}  // namespace
