// Threads that run a job together: all go through the same code, and share the chunks of each of its phases.
//
// A thread claims chunks one by one, so a thread that the system has put aside holds up at most one chunk, and one that comes
// late passes over what is done. Between the phases of a job nobody is woken or handed anything, so a job may have hundreds.

#pragma once

#include <immintrin.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <thread>
#include <vector>

namespace {

class Crew;

using Call = std::function<void(Crew&)>;  // a kernel with its arguments

struct Pool {
  static constexpr uint64_t kOpen = uint64_t(1) << 31, kJob = uint64_t(1) << 32;

  std::vector<std::thread> threads;
  alignas(64) std::atomic<uint64_t> gate{0};    // multiples of kJob: job number; kOpen: may be joined; below: who is inside
  alignas(64) std::atomic<int64_t> claimed{0};  // chunks of the job, over all its phases so far
  alignas(64) std::atomic<int64_t> done{0};
  alignas(64) std::atomic<bool> stopping{false};
  void (*enter)(const void*, Crew&) = nullptr;
  const void* job = nullptr;
  std::vector<Call>* tape = nullptr;  // calls are written down here while they are recorded
  std::vector<std::byte> held;

  int64_t num_threads() const { return int64_t(threads.size()) + 1; }

  // Room that one kernel uses while it runs. Reserved before a job, fetched within.
  void reserve(int64_t bytes) {
    if (int64_t(held.size()) < bytes) held.resize(size_t(bytes));
  }
  template <class T>
  T* scratch() {
    return reinterpret_cast<T*>(held.data());
  }

  template <class Job>
  void run(const Job& job);
  void loop(int64_t member);
};

// One thread's way through a job.
class Crew {
 public:
  Crew(Pool& pool, int64_t member) : pool(pool), member_(member) {}

  Pool& pool;

  // body(chunk) for each chunk below `chunks`; returns when all are done. What is small is better not shared.
  template <class Body>
  void share(int64_t chunks, const Body& body) {
    const int64_t before = passed_;
    passed_ += chunks;
    if (chunks > 1) open();
    for (int64_t next = pool.claimed.load(std::memory_order_relaxed); next < passed_;) {
      if (!pool.claimed.compare_exchange_weak(next, next + 1, std::memory_order_relaxed)) continue;
      body(next - before);
      pool.done.fetch_add(1, std::memory_order_acq_rel);
      next = pool.claimed.load(std::memory_order_relaxed);
    }
    constexpr int kSpins = 4000;
    for (int spins = 0; pool.done.load(std::memory_order_acquire) < passed_; ++spins) {
      if (spins < kSpins) _mm_pause();
      else std::this_thread::yield();
    }
  }

  // The first thread of a job lets the others in.
  void open() {
    if (member_ != 0 || opened_ || pool.threads.empty()) return;
    opened_ = true;
    const uint64_t number = pool.gate.load(std::memory_order_relaxed) / Pool::kJob + 1;
    pool.gate.store(number * Pool::kJob | Pool::kOpen, std::memory_order_release);
    pool.gate.notify_all();
  }

  // Returns when the others have left.
  void close() {
    if (!opened_) return;
    pool.gate.fetch_and(~Pool::kOpen, std::memory_order_acq_rel);
    for (int spins = 0; pool.gate.load(std::memory_order_acquire) % Pool::kOpen != 0; ++spins) {
      if (spins < 4000) _mm_pause();
      else std::this_thread::yield();
    }
  }

 private:
  int64_t member_, passed_ = 0;
  bool opened_ = false;
};

template <class Job>
void Pool::run(const Job& body) {
  claimed.store(0, std::memory_order_relaxed);
  done.store(0, std::memory_order_relaxed);
  enter = [](const void* job, Crew& crew) { (*static_cast<const Job*>(job))(crew); };
  job = &body;
  Crew crew(*this, 0);
  body(crew);
  crew.close();
}

inline void Pool::loop(int64_t member) {
  constexpr int kSpins = 8000;  // about 100 microseconds: longer than the gap between two kernels, on a busy machine too
  uint64_t last = 0;            // the job this thread has been through
  for (;;) {
    uint64_t now = gate.load(std::memory_order_acquire);
    if (stopping.load(std::memory_order_acquire)) return;
    if ((now & kOpen) && now / kJob != last) {
      if (!gate.compare_exchange_weak(now, now + 1, std::memory_order_acq_rel)) continue;
      last = now / kJob;
      Crew crew(*this, member);
      enter(job, crew);
      gate.fetch_sub(1, std::memory_order_acq_rel);
      continue;
    }
    int spins = 0;
    while (spins < kSpins && gate.load(std::memory_order_relaxed) / kJob == now / kJob) {
      _mm_pause();
      ++spins;
    }
    if (spins == kSpins) gate.wait(now, std::memory_order_acquire);
  }
}

// Runs a call now, and writes it down while calls are recorded.
template <class Run>
void perform(Pool* pool, const Run& run) {
  if (pool->tape) pool->tape->push_back(run);
  pool->run(run);
}

// Runs recorded calls as one job.
inline void replay(Pool* pool, const std::vector<Call>& calls) {
  pool->run([&calls](Crew& crew) {
    crew.open();
    for (const Call& call : calls) call(crew);
  });
}

}  // namespace
