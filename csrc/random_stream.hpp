// Where stochastic rounding takes its random bits from.
#pragma once

#include <cstdint>
#include <string_view>

namespace adafactor {

// The key and the stream of a tensor's step, as in Rounding: a function of the seed, the tensor's
// own count of steps and its key, so that neither its place among others nor theirs matter.
// Neighbouring seeds, steps and keys have nothing in common.
struct RandomStream {
    std::uint32_t key, stream;

    static RandomStream of(std::uint64_t seed, std::int64_t t, std::uint64_t tensor_key) {
        const std::uint64_t bits = mixed(mixed(mixed(seed) + std::uint64_t(t)) + tensor_key);
        return {std::uint32_t(bits >> 32), std::uint32_t(bits)};
    }

    // FNV-1a of 64 bits (Fowler, Noll and Vo) of a name's UTF-8.
    static std::uint64_t key_of(std::string_view name) {
        std::uint64_t hash = 0xcbf29ce484222325u;
        for (const char c : name) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3u;
        return hash;
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
