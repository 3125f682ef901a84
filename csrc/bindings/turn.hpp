// One thread at a time.
#pragma once

#include <atomic>
#include <stdexcept>

namespace adafactor {

class Turn {
public:
    explicit Turn(std::atomic<bool>& busy) : busy_(busy) {
        if (busy_.exchange(true, std::memory_order_acquire))
            throw std::runtime_error("this optimizer is being updated by another thread");
    }
    ~Turn() { busy_.store(false, std::memory_order_release); }
    Turn(const Turn&) = delete;
    Turn& operator=(const Turn&) = delete;

private:
    std::atomic<bool>& busy_;
};

}  // namespace adafactor
