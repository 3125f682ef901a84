#include "engine/threads.hpp"

#include <pthread.h>

#include <algorithm>

namespace adafactor {
namespace {

constexpr std::size_t kElementsPerThread = 65536;

std::atomic<int> limit_for_all{1};
std::atomic<bool> in_forked_child{false};

const int at_fork = pthread_atfork(nullptr, nullptr, [] { in_forked_child = true; });

}  // namespace

bool has_openmp() {
#ifdef _OPENMP
    return true;
#else
    return false;
#endif
}

int max_threads() { return limit_for_all; }

void set_max_threads(int threads) { limit_for_all = threads; }

Share* shares_of_this_thread() {
    static thread_local Share shares[kMaxThreads];
    return shares;
}

int team_size(std::size_t elements, int limit) {
    if (!has_openmp() || in_forked_child) return 1;
    const int most = std::min(limit, kMaxThreads);
    return int(std::clamp<std::size_t>(elements / kElementsPerThread, 1, std::size_t(most)));
}

}  // namespace adafactor
