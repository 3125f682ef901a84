// Where stochastic rounding takes its random bits from.
#pragma once

#include <cstdint>

namespace adafactor {

// The key and the stream of a tensor's step, as in Rounding. Neighbouring seeds, steps and tensors
// have nothing in common.
struct RandomStream {
    std::uint32_t key, stream;

    static RandomStream of(std::uint64_t seed, std::int64_t t, std::size_t tensor) {
        const std::uint64_t bits = mixed(mixed(mixed(seed) + std::uint64_t(t)) + tensor);
        return {std::uint32_t(bits >> 32), std::uint32_t(bits)};
    }

private:
    // SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014).
    static std::uint64_t mixed(std::uint64_t x) {
        x += 0x9e3779b97f4a7c15u;
        x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
        x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
        return x ^ (x >> 31);
    }
};

}  // namespace adafactor
