#include "engine/threads.hpp"

#include <algorithm>
#include <exception>
#include <thread>
#include <vector>

#include "platform.hpp"

namespace adafactor {
namespace {

constexpr std::size_t kElementsPerThread = 65536;

std::atomic<int> limit_for_all{1};
std::atomic<bool> is_limit_by_default{true};
std::atomic<bool> in_forked_child{false};

const int at_fork = call_in_children_of_fork([] { in_forked_child = true; });

// How many of `threads` the system grants besides this one, all at once.
int granted_beside_this(int threads) {
    std::atomic<bool> all_are_there{false};
    std::vector<std::thread> granted;
    try {
        granted.reserve(std::size_t(threads));
        while (int(granted.size()) < threads)
            granted.emplace_back([&] { all_are_there.wait(false); });
    } catch (const std::exception&) {  // there is no memory for another, or no permission
    }
    all_are_there = true;
    all_are_there.notify_all();
    for (std::thread& thread : granted) thread.join();
    return int(granted.size());
}

// The largest team that this thread has had: OpenMP keeps a team for each.
thread_local int largest_team = 1;

int team_that_starts(int threads) {
    if (threads > largest_team) largest_team = 1 + granted_beside_this(threads - 1);
    return std::min(threads, largest_team);
}

}  // namespace

bool has_openmp() {
#ifdef _OPENMP
    return true;
#else
    return false;
#endif
}

int max_threads() {
#ifdef _OPENMP
    if (is_limit_by_default) return std::min<int>(limit_for_all, omp_get_max_threads());
#endif
    return limit_for_all;
}

void set_max_threads(int threads) {
    is_limit_by_default = false;
    limit_for_all = threads;
}

void set_default_threads(int threads) {
    is_limit_by_default = true;
    limit_for_all = threads;
}

Share* shares_of_this_thread() {
    static thread_local Share shares[kMaxThreads];
    return shares;
}

int team_size(std::size_t elements, int limit) {
    if (!has_openmp() || in_forked_child) return 1;
    const int most = std::min(limit, kMaxThreads);
    const auto wanted =
        std::clamp<std::size_t>(elements / kElementsPerThread, 1, std::size_t(most));
    return team_that_starts(int(wanted));
}

}  // namespace adafactor
