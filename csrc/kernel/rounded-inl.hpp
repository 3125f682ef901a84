// Whether halves are still what floats were rounded to.

// The distance of a half, as a float, to the next larger one.
template <class T>
ADAFACTOR_INLINE float unit_of(float half) {
    constexpr float digits = std::is_same_v<T, Bfloat16> ? 0x1p-7f : 0x1p-10f;
    constexpr float least = std::is_same_v<T, Bfloat16> ? 0x1p-133f : 0x1p-24f;
    std::uint32_t bits;
    __builtin_memcpy(&bits, &half, sizeof(bits));
    bits &= 0x7f800000u;
    float power;
    __builtin_memcpy(&power, &bits, sizeof(power));
    return power * digits > least ? power * digits : least;
}

template <class T>
bool run_is_rounded(const Block& floats, const Block& halves, bool stochastic) {
    Half nearest[kChunk];
    float now[kChunk];
    const std::size_t n = halves.cols;
    const float* const x = numbers_of<const float>(floats);
    if (!stochastic) {
        copy_block(x, 0, {reinterpret_cast<char*>(nearest), 0, 1, n, halves.format}, Rounding());
        if (__builtin_memcmp(nearest, halves.data, n * sizeof(Half)) == 0) return true;
    }
    copy_block(halves, now);
    const auto is_near = [&](std::size_t k) __attribute__((always_inline)) {
        return __builtin_fabsf(now[k] - x[k]) < unit_of<T>(now[k]);
    };
    if (stochastic) {
        int far = 0;
        for (std::size_t k = 0; k < n; ++k) far |= !is_near(k);
        if (far == 0) return true;
        copy_block(x, 0, {reinterpret_cast<char*>(nearest), 0, 1, n, halves.format}, Rounding());
    }
    const Half* const half = numbers_of<const Half>(halves);
    for (std::size_t k = 0; k < n; ++k) {
        Half bits;
        __builtin_memcpy(&bits, half + k, sizeof(bits));
        const bool both_nan = now[k] != now[k] && x[k] != x[k];
        if (bits != nearest[k] && !both_nan && !(stochastic && is_near(k))) return false;
    }
    return true;
}

bool are_rounded(const Block& floats, const Block& halves, bool stochastic) {
    return halves.format == Format::bfloat16 ? run_is_rounded<Bfloat16>(floats, halves, stochastic)
                                             : run_is_rounded<Float16>(floats, halves, stochastic);
}
