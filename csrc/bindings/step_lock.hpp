// One step of an optimizer at a time.
#pragma once

#include <atomic>
#include <stdexcept>

namespace adafactor {

class StepLock {
public:
    explicit StepLock(std::atomic<bool>& stepping) : stepping_(stepping) {
        if (stepping_.exchange(true, std::memory_order_acquire))
            throw std::runtime_error("this optimizer is being updated by another thread");
    }
    ~StepLock() { stepping_.store(false, std::memory_order_release); }
    StepLock(const StepLock&) = delete;
    StepLock& operator=(const StepLock&) = delete;

private:
    std::atomic<bool>& stepping_;
};

}  // namespace adafactor
