// What the bits of halves mean: read as floats, exactly; written rounded, to nearest or at random.
//
// Integer arithmetic, or F16C, which has the same bits. AVX-512 BF16 has not: it takes subnormal
// numbers for zeros.

using Floats = Lanes<float>::Vector;
using Words = VectorOf<std::uint32_t, kVectorBytes>::Aligned;
using Ints = VectorOf<std::int32_t, kVectorBytes>::Aligned;
using Halves = VectorOf<Half, kVectorBytes / 2>::Aligned;
using HalvesAnywhere = VectorOf<Half, kVectorBytes / 2>::Unaligned;

constexpr std::size_t kWidth = kVectorBytes / sizeof(float);  // lanes of one part

#if defined(__AVX512F__) || defined(__F16C__)
#define ADAFACTOR_F16C 1
#else
#define ADAFACTOR_F16C 0
#endif

ADAFACTOR_INLINE Words words_of(const Floats& x) { return reinterpret_cast<Words>(x); }
ADAFACTOR_INLINE Floats floats_of(const Words& x) { return reinterpret_cast<Floats>(x); }
ADAFACTOR_INLINE Words magnitude(const Floats& x) { return words_of(x) & 0x7fffffffu; }
ADAFACTOR_INLINE Words half_sign(const Floats& x) { return words_of(x) >> 16 & 0x8000u; }
ADAFACTOR_INLINE Words where(const Ints& mask, const Words& x, const Words& y) {
    return mask ? x : y;
}
// Takes magnitudes, which are below 2^31: sets without an unsigned comparison have a signed one.
ADAFACTOR_INLINE Ints at_least_word(const Words& x, std::int32_t y) {
    return reinterpret_cast<Ints>(x) >= y;
}
ADAFACTOR_INLINE bool any(const Ints& mask) {
#if defined(__AVX512F__)
    const auto bits = reinterpret_cast<__m512i>(mask);
    return _mm512_test_epi32_mask(bits, bits) != 0;
#elif defined(__AVX2__)
    return _mm256_movemask_epi8(reinterpret_cast<__m256i>(mask)) != 0;
#elif defined(__SSE2__)
    return _mm_movemask_epi8(reinterpret_cast<__m128i>(mask)) != 0;
#else
    std::int32_t all = 0;
    for (std::size_t k = 0; k < kWidth; ++k) all |= mask[k];
    return all != 0;
#endif
}

// GCC converts between sixteen halves and words by halves of halves.
ADAFACTOR_INLINE Words words_of(const Halves& x) {
#if defined(__AVX512F__)
    return reinterpret_cast<Words>(_mm512_cvtepu16_epi32(reinterpret_cast<__m256i>(x)));
#elif defined(__AVX2__)
    return reinterpret_cast<Words>(_mm256_cvtepu16_epi32(reinterpret_cast<__m128i>(x)));
#else
    return __builtin_convertvector(x, Words);
#endif
}
ADAFACTOR_INLINE Halves narrowed(const Words& x) {
#if defined(__AVX512F__)
    return reinterpret_cast<Halves>(_mm512_cvtepi32_epi16(reinterpret_cast<__m512i>(x)));
#else
    return __builtin_convertvector(x, Halves);
#endif
}

// Each format widens a vector, and rounds one to nearest, ties to even, or by `random` words below
// 2^16: upwards in magnitude as often as the part that is lost is larger than such a word.
struct Bfloat16 {
    Half bits;

    static ADAFACTOR_INLINE Floats widened(const Halves& x) { return floats_of(words_of(x) << 16); }
    static ADAFACTOR_INLINE Halves nearest(const Floats& x) {
        const Words word = without_payload(x);
        return narrowed((word + (0x7fffu + (word >> 16 & 1u))) >> 16);
    }
    static ADAFACTOR_INLINE Halves stochastic(const Floats& x, const Words& random) {
        return narrowed((without_payload(x) + random) >> 16);
    }

private:
    // A nan without its payload does not become anything else by rounding.
    static ADAFACTOR_INLINE Words without_payload(const Floats& x) {
        const Words word = words_of(x);
        return where(x != x, (word & 0x80000000u) | 0x7fc00000u, word);
    }
};

struct Float16 {
    Half bits;

    static ADAFACTOR_INLINE Floats widened(const Halves& x) {
#if defined(__AVX512F__)
        return reinterpret_cast<Floats>(_mm512_cvtph_ps(reinterpret_cast<__m256i>(x)));
#elif defined(__F16C__)
        return reinterpret_cast<Floats>(_mm256_cvtph_ps(reinterpret_cast<__m128i>(x)));
#else
        const Words half = words_of(x), number = half & 0x7fffu;
        const Words normal = (number << 13) + (112u << 23);
        const Floats subnormal =
            __builtin_convertvector(reinterpret_cast<Ints>(number), Floats) * 0x1p-24f;
        const Words quiet = where(at_least_word(number, 0x7c01), Words{} + 0x400000u, Words{});
        Words word = where(at_least_word(number, 0x400), normal, words_of(subnormal));
        word = where(at_least_word(number, 0x7c00), (number << 13 | 0x7f800000u) | quiet, word);
        return floats_of(word | (half & 0x8000u) << 16);
#endif
    }

    static ADAFACTOR_INLINE Halves nearest(const Floats& x) {
#if ADAFACTOR_F16C
        return converted<_MM_FROUND_TO_NEAREST_INT>(x);
#else
        const Words word = magnitude(x);
        const Words normal = (word - (112u << 23) + (0xfffu + (word >> 13 & 1u))) >> 13;
        // The sum's last bit is worth the smallest half: the addition rounds.
        const Words subnormal = words_of(floats_of(word) + 0.5f) - words_of(Floats{} + 0.5f);
        return finished(x, word, normal, subnormal);
#endif
    }

    static ADAFACTOR_INLINE Halves stochastic(const Floats& x, const Words& random) {
        const Words word = magnitude(x);
#if ADAFACTOR_F16C
        const Ints unusual = ~at_least_word(word, kSmallestNormal) | at_least_word(word, kLargest);
        if (__builtin_expect(!any(unusual), true))
            return converted<_MM_FROUND_TO_ZERO>(floats_of(words_of(x) + (random >> 3)));
#endif
        const Words normal = (word - (112u << 23) + (random >> 3)) >> 13;
        // In units of 2^-16 of the smallest half.
        const Floats small =
            floats_of(where(at_least_word(word, kSmallestNormal), Words{}, word)) * 0x1p40f;
        const Words fixed = reinterpret_cast<Words>(__builtin_convertvector(small, Ints));
        return finished(x, word, normal, (fixed + random) >> 16);
    }

private:
    static constexpr std::int32_t kSmallestNormal = 113 << 23;  // 2^-14
    static constexpr std::int32_t kLargest = 0x477fe000;        // 65504
    static constexpr std::int32_t kOverflow = 143 << 23;        // 2^16, as everything above 65520

#if ADAFACTOR_F16C
    template <int rounding>
    static ADAFACTOR_INLINE Halves converted(const Floats& x) {
#if defined(__AVX512F__)
        return reinterpret_cast<Halves>(
            _mm512_cvtps_ph(reinterpret_cast<__m512>(x), rounding | _MM_FROUND_NO_EXC));
#else
        return reinterpret_cast<Halves>(
            _mm256_cvtps_ph(reinterpret_cast<__m256>(x), rounding | _MM_FROUND_NO_EXC));
#endif
    }
#endif

    // `word`: the magnitude. `normal` and `subnormal` need not be right for numbers of the other
    // kind.
    static ADAFACTOR_INLINE Halves finished(const Floats& x, const Words& word, const Words& normal,
                                            const Words& subnormal) {
        Words half = where(at_least_word(word, kSmallestNormal), normal, subnormal);
        const Ints overflows = at_least_word(word, kOverflow);
        if (__builtin_expect(any(overflows), false)) {
            const Words nan = (word >> 13 & 0x3ffu) | 0x7e00u;
            half = where(x != x, nan, where(overflows, Words{} + 0x7c00u, half));
        }
        return narrowed(half | half_sign(x));
    }
};

// A float as two halves: the nearest bfloat16, ties away from zero; and the float's own low bits,
// which as a signed number lead from there to it.
struct Split {
    Half upper;

    static ADAFACTOR_INLINE Floats joined(const Halves& upper, const Halves& lower) {
        const Words low = words_of(lower);
        return floats_of((words_of(upper) << 16) + low - ((low & 0x8000u) << 1));
    }
    static ADAFACTOR_INLINE Halves upper_of(const Floats& x) {
        return narrowed(where(x != x, half_sign(x) | 0x7fc0u, (words_of(x) + 0x8000u) >> 16));
    }
    static ADAFACTOR_INLINE Halves lower_of(const Floats& x) {
        return narrowed(where(x != x, Words{}, words_of(x) & 0xffffu));
    }
};
