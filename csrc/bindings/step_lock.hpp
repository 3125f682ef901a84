// One thread at a time in an optimizer, and what becomes of that in a child of fork().
#pragma once

#include <atomic>
#include <cstdint>
#include <stdexcept>
#include <thread>

#include "platform.hpp"

namespace adafactor {

// Whether a thread steps, loads or saves an optimizer.
class Occupancy {
public:
    // Which threads exist: each child of fork() counts on from its parent.
    static std::uint32_t generation() { return of_this_process(); }

private:
    friend class StepLock;

    static std::atomic<std::uint32_t>& of_this_process() {
        static std::atomic<std::uint32_t> generation{1};
        static const int at_fork = call_in_children_of_fork([] { ++of_this_process(); });
        static_cast<void>(at_fork);
        return generation;
    }

    std::atomic<std::uint32_t> taken_in_{0};  // the generation of the thread that is in; 0: none
    std::atomic<std::thread::id> inside_{};   // who may take it again, within `alone`
};

class StepLock {
public:
    enum class Entry {
        step,        // what a fork has cut off is refused
        load,        // and is mended, for all is written anew; the thread in `alone` may enter
        alone,       // as step, and lets its thread load
        alone_load,  // as load, likewise
    };

    explicit StepLock(Occupancy& occupancy, Entry entry = Entry::step) : occupancy_(occupancy) {
        const bool loads = entry == Entry::load || entry == Entry::alone_load;
        const std::thread::id none, self = std::this_thread::get_id();
        if (entry == Entry::load && occupancy_.inside_.load(std::memory_order_relaxed) == self) {
            is_inner_ = true;
            return;
        }
        const std::uint32_t now = Occupancy::generation();
        std::uint32_t holder = 0;
        if (!occupancy_.taken_in_.compare_exchange_strong(holder, now)) {
            if (holder == now)
                throw std::runtime_error("this optimizer is being updated by another thread");
            if (!loads)
                throw std::runtime_error(
                    "this process was forked while another thread was in a step of this "
                    "optimizer, so its arrays may be half written here: load a state with "
                    "load_state_dict, or make a new optimizer");
            occupancy_.taken_in_ = now;
        }
        const bool is_alone = entry == Entry::alone || entry == Entry::alone_load;
        occupancy_.inside_.store(is_alone ? self : none, std::memory_order_relaxed);
    }

    ~StepLock() {
        if (is_inner_) return;
        occupancy_.inside_.store(std::thread::id(), std::memory_order_relaxed);
        occupancy_.taken_in_.store(0, std::memory_order_release);
    }

    StepLock(const StepLock&) = delete;
    StepLock& operator=(const StepLock&) = delete;

private:
    Occupancy& occupancy_;
    bool is_inner_ = false;
};

}  // namespace adafactor
