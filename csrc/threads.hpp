// Threads: how many, and one loop over tasks.
#pragma once

#include <atomic>
#include <cstddef>

#ifdef _OPENMP
#include <omp.h>
#endif

namespace adafactor {

bool has_openmp();

// The limit where a call names none; at least 1.
int max_threads();
void set_max_threads(int threads);

// The team for `elements` elements of work: small tensors are done before a second thread wakes.
// A child of fork() stays on one thread: the OpenMP runtime's threads do not exist in it.
int team_size(std::size_t elements, int limit);

// Calls body(task, thread) for every task in [0, n_tasks), thread in [0, threads). Which thread
// gets which task is left to chance, so a body's result must not depend on `thread`.
template <class Body>
void parallel_for(std::size_t n_tasks, int threads, const Body& body) {
    if (threads <= 1 || n_tasks <= 1) {
        for (std::size_t task = 0; task < n_tasks; ++task) body(task, 0);
        return;
    }
#ifdef _OPENMP
    std::atomic<std::size_t> next{0};
#pragma omp parallel num_threads(threads)
    {
        const int thread = omp_get_thread_num();
        for (std::size_t task; (task = next.fetch_add(1, std::memory_order_relaxed)) < n_tasks;)
            body(task, thread);
    }
#endif
}

}  // namespace adafactor
