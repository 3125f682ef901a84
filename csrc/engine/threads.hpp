// Threads: how many, and one loop over tasks.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <utility>

#ifdef _OPENMP
#include <omp.h>
#endif

#include "engine/float_environment.hpp"

namespace adafactor {

inline constexpr std::size_t kTaskElements = 65536;  // that a thread takes at a time

bool has_openmp();

// The limit where a call names none; at least 1. A default is no more than OpenMP's own limit for
// the calling thread, which other libraries may have lowered by omp_set_num_threads.
int max_threads();
void set_max_threads(int threads);
void set_default_threads(int threads);

// The team for `elements` elements of work: small tensors are done before a second thread wakes.
// A child of fork() stays on one thread: the OpenMP runtime's threads do not exist in it. Where the
// system grants no more threads, the team is smaller: the OpenMP runtime would end the process.
int team_size(std::size_t elements, int limit);

// A thread's own tasks, [first, last). It takes them from one end, others from the other.
class Share {
public:
    void hold(std::size_t first, std::size_t last) { range_ = pack(first, last); }

    bool take_first(std::size_t& task) {
        return take(task, [](std::uint64_t first, std::uint64_t last) {
            return std::pair(first, pack(first + 1, last));
        });
    }

    bool take_last(std::size_t& task) {
        return take(task, [](std::uint64_t first, std::uint64_t last) {
            return std::pair(last - 1, pack(first, last - 1));
        });
    }

private:
    static std::uint64_t pack(std::uint64_t first, std::uint64_t last) {
        return first << 32 | last;
    }

    template <class Choose>  // (first, last) -> task, what is left
    bool take(std::size_t& task, const Choose& choose) {
        std::uint64_t range = range_.load(std::memory_order_relaxed);
        for (;;) {
            const std::uint64_t first = range >> 32, last = range & 0xffffffff;
            if (first >= last) return false;
            const auto [chosen, left] = choose(first, last);
            if (range_.compare_exchange_weak(range, left, std::memory_order_relaxed)) {
                task = chosen;
                return true;
            }
        }
    }

    alignas(64) std::atomic<std::uint64_t> range_;
};

enum class Order { forwards, backwards };

inline constexpr int kMaxThreads = 256;  // of a team

// One for each thread of the calling thread's teams, made once.
Share* shares_of_this_thread();

// Calls body(task, thread) for every task in [0, n_tasks), thread in [0, threads).
//
// Each thread has a share of neighbouring tasks, the same for the same numbers of tasks and
// threads, and goes through it in `order`: a sweep backwards begins with what the sweep forwards
// before it left in that core's cache. Who is done early takes from others, so who runs a task is
// left to chance, and a body's result must not depend on `thread`.
template <class Body>
void parallel_for(std::size_t n_tasks, int threads, Order order, const Body& body) {
    if (threads <= 1 || n_tasks <= 1) {
        for (std::size_t k = 0; k < n_tasks; ++k)
            body(order == Order::forwards ? k : n_tasks - 1 - k, 0);
        return;
    }
#ifdef _OPENMP
    Share* const share = shares_of_this_thread();
    for (std::size_t k = 0, n = std::size_t(threads); k < n; ++k)
        share[k].hold(k * n_tasks / n, (k + 1) * n_tasks / n);
#pragma omp parallel num_threads(threads)
    {
        const DefaultFloatEnvironment while_this_works;
        const int thread = omp_get_thread_num();
        for (int k = 0; k < threads; ++k) {
            Share& from = share[(thread + k) % threads];
            const bool takes_first = (k == 0) == (order == Order::forwards);
            for (std::size_t task; takes_first ? from.take_first(task) : from.take_last(task);)
                body(task, thread);
        }
    }
#endif
}

template <class Body>
void parallel_for(std::size_t n_tasks, int threads, const Body& body) {
    parallel_for(n_tasks, threads, Order::forwards, body);
}

}  // namespace adafactor
