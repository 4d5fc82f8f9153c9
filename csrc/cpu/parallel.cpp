#include "cpu/parallel.h"

#include <dlfcn.h>
#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <system_error>
#include <thread>

#include "cpu/float_environment.h"

namespace gmmkernel {
namespace {

struct Job {
  const std::function<void(int64_t, int64_t)>* body;
  int64_t items;
  int64_t piece;
  int seats;        // how many more workers may join; guarded by the pool's mutex
  int working = 0;  // how many workers are inside; guarded by the pool's mutex
  std::atomic<int64_t> next{0};

  void work() {
    const ExactFloatEnvironment environment;
    for (;;) {
      const int64_t first = next.fetch_add(piece, std::memory_order_relaxed);
      if (first >= items) return;
      (*body)(first, std::min(first + piece, items));
    }
  }
};

// Workers sleep until a job has a free seat. They are detached and live as long as the process: the pool is never
// destroyed, so that nothing has to be joined while an interpreter shuts down.
class Pool {
 public:
  void run(Job& job) {
    const int seats = job.seats;  // workers count it down from the moment they see the job
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      for (int wanted = seats + busy_; started_ < wanted; ++started_) {
        try {
          std::thread([this] { serve(); }).detach();
        } catch (const std::system_error&) {
          break;  // no more threads to be had: the caller does the work
        }
      }
      jobs_.push_back(&job);
    }
    for (int i = 0; i < seats; ++i) work_.notify_one();
    job.work();
    std::unique_lock<std::mutex> lock(mutex_);
    jobs_.erase(std::remove(jobs_.begin(), jobs_.end(), &job), jobs_.end());  // nobody new may join
    done_.wait(lock, [&job] { return job.working == 0; });
  }

 private:
  Job* joinable() {
    for (Job* job : jobs_) {
      if (job->seats > 0) return job;
    }
    return nullptr;
  }

  void serve() {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      Job* job = nullptr;
      work_.wait(lock, [&] { return (job = joinable()) != nullptr; });
      --job->seats;
      ++job->working;
      ++busy_;
      lock.unlock();
      job->work();
      lock.lock();
      --busy_;
      if (--job->working == 0) done_.notify_all();
    }
  }

  std::mutex mutex_;
  std::condition_variable work_;
  std::condition_variable done_;
  std::deque<Job*> jobs_;
  int started_ = 0;
  int busy_ = 0;
};

Pool* pool = nullptr;
std::once_flag pool_once;

// A forked child has none of its parent's workers, and perhaps a mutex that one of them held: it starts a new pool
// and leaves the old one behind. OpenMP's threads are lost too, and its runtime may wait for them for ever.
bool forked = false;
void after_fork_in_child() {
  pool = new Pool;
  forked = true;
}

Pool& shared_pool() {
  std::call_once(pool_once, [] {
    pool = new Pool;
    pthread_atfork(nullptr, nullptr, after_fork_in_child);
  });
  return *pool;
}

// Made while the program is loaded, so that no fork can find it half made.
[[maybe_unused]] Pool& made_at_load = shared_pool();

// Runs body(data) on `threads` threads and returns when all have finished: the entry point that compilers call for
// `#pragma omp parallel`, in GNU's runtime and, under the same name, in LLVM's and Intel's.
using OpenMPRegion = void (*)(void (*body)(void*), void* data, unsigned threads, unsigned flags);

// The OpenMP runtime that the process already has (PyTorch brings one), or null. Its threads spin for some milliseconds
// after each region: threads of our own would have to share the processors with them.
OpenMPRegion openmp_region() {
  static const auto region = reinterpret_cast<OpenMPRegion>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
  return forked ? nullptr : region;
}

}  // namespace

void parallel_for(int64_t items, int64_t piece, int threads, const std::function<void(int64_t, int64_t)>& body) {
  const int64_t pieces = (items + piece - 1) / piece;
  Job job{&body, items, piece, static_cast<int>(std::min<int64_t>(threads, pieces)) - 1};
  if (job.seats <= 0) {
    job.work();
  } else if (const OpenMPRegion region = openmp_region()) {
    // Always the caller's count, even for fewer pieces: a smaller team would make the runtime end threads it keeps.
    region([](void* data) { static_cast<Job*>(data)->work(); }, &job, static_cast<unsigned>(threads), 0);
  } else {
    shared_pool().run(job);
  }
}

}  // namespace gmmkernel
