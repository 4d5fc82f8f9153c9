// Calls from several threads at once, with any number of threads of their own, and from forked children.

#include <dlfcn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <memory>
#include <thread>

#include "step_case.h"

namespace {

StepOptions large() {
  StepOptions options;
  options.batch = 4;
  options.elements = 50001;
  options.components = 8;
  options.std_elements = 1000;
  return options;
}

#if defined(_OPENMP)
// Only a program that uses OpenMP has its threads.
int openmp_threads() {
  int count = 0;
#pragma omp parallel num_threads(3) reduction(+ : count)
  ++count;
  return count;
}
#endif

bool right(const StepCase& expected, int32_t threads) {
  StepCase got(expected.options, 1);
  return got.run(threads, GMM_BEST) == GMM_SUCCESS && same_outcome(got, expected);
}

void test_counts(const StepCase& expected) {
  for (const int32_t threads : {1, 2, 3, 4, 16, 100}) CHECK(right(expected, threads), "%d threads", threads);
}

void test_callers(const StepCase& expected) {
  constexpr int callers = 6, calls = 20;
  int failures[callers] = {};
  std::vector<std::thread> running;
  for (int caller = 0; caller < callers; ++caller) {
    running.emplace_back([&expected, &failures, caller] {
      for (int call = 0; call < calls; ++call) failures[caller] += right(expected, 1 + (caller + call) % 4) ? 0 : 1;
      // The error message is the thread's own.
      StepCase bad(expected.options, 1);
      bad.seeds[0] = caller;
      bad.row[0] = 100 + caller;
      char named[64];
      std::snprintf(named, sizeof named, "got %d for sample 0", 100 + caller);
      if (bad.run(2, GMM_BEST) != GMM_OUT_OF_RANGE || std::strstr(gmm_last_error(), named) == nullptr) {
        ++failures[caller];
      }
    });
  }
  for (std::thread& thread : running) thread.join();
  for (int caller = 0; caller < callers; ++caller)
    CHECK(failures[caller] == 0, "caller %d: %d", caller, failures[caller]);
}

int status_of(pid_t child) {
  int status = -1;
  CHECK(waitpid(child, &status, 0) == child, "waitpid");
  return status;
}

// A child, and its own child, after the parent has used its threads; then the parent again.
void test_fork(const StepCase& expected) {
  CHECK(right(expected, 3), "before the fork");
  const pid_t child = fork();
  if (child == 0) {
    bool good = right(expected, 1) && right(expected, 3) && right(expected, 3);
    const pid_t grandchild = fork();
    if (grandchild == 0) _exit(right(expected, 2) ? 0 : 1);
    good = good && status_of(grandchild) == 0;
    _exit(good ? 0 : 1);
  }
  CHECK(status_of(child) == 0, "in the child");
  CHECK(right(expected, 3), "after the fork");
}

#if !defined(__SANITIZE_ADDRESS__)
// Forks while other threads are inside calls. Not with AddressSanitizer: glibc's malloc is whole again in a forked
// child, but the sanitizer's allocator (GCC 12's) keeps a lock that another thread held, and the child waits for ever.
void test_fork_under_way(const StepCase& expected) {
  bool stop = false, good[2] = {true, true};
  std::vector<std::thread> running;
  for (int caller = 0; caller < 2; ++caller) {
    running.emplace_back([&expected, &stop, &good, caller] {
      while (!__atomic_load_n(&stop, __ATOMIC_RELAXED)) good[caller] = right(expected, 2) && good[caller];
    });
  }
  for (int n = 0; n < 20; ++n) {
    const pid_t child = fork();
    if (child == 0) _exit(right(expected, 2) ? 0 : 1);
    CHECK(status_of(child) == 0, "child %d", n);
  }
  __atomic_store_n(&stop, true, __ATOMIC_RELAXED);
  for (std::thread& thread : running) thread.join();
  CHECK(good[0] && good[1], "in the parent");
}
#endif

}  // namespace

int main() {
#if defined(_OPENMP)
  CHECK(openmp_threads() >= 1 && dlsym(RTLD_DEFAULT, "GOMP_parallel") != nullptr, "no OpenMP in this program");
#endif
  StepCase expected(large(), 1);
  CHECK(expected.run(1, GMM_PORTABLE) == GMM_SUCCESS, "%s", gmm_last_error());
  test_counts(expected);
  test_callers(expected);
  test_fork(expected);
#if !defined(__SANITIZE_ADDRESS__)
  test_fork_under_way(expected);
#endif
  return check_report();
}
