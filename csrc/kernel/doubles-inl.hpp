// Loops over the numbers of an axis: means, sums of squares, factors; all in double.

using Doubles = Lanes<double>;

constexpr double kLaneNumbers[kLanes<double>] = {0, 1, 2, 3, 4, 5, 6, 7};

// x in its first n lanes, `pad` behind them.
ADAFACTOR_INLINE Doubles padded_with(const Doubles& x, std::size_t n, double pad) {
    const Doubles lane = load<double>(kLaneNumbers), end = broadcast(double(n));
    const Doubles otherwise = broadcast(pad);
    Doubles out;
    ADAFACTOR_PARTS out.part[part] =
        lane.part[part] < end.part[part] ? x.part[part] : otherwise.part[part];
    return out;
}

// Calls group(k, load, store) for each group of lanes: load(array, pad) has the array's numbers
// from k on, and `pad` past the n-th; store(array, x) writes those that are not past it.
template <class Group>
ADAFACTOR_INLINE void for_groups(std::size_t n, const Group& group) {
    std::size_t k = 0;
    for (; k + kLanes<double> <= n; k += kLanes<double>)
        group(
            k,
            [k](const double* x, double)
                __attribute__((always_inline)) { return load<double>(x + k); },
            [k](auto* to, const Doubles& x) __attribute__((always_inline)) { store(to + k, x); });
    if (const std::size_t rest = n - k; rest > 0)
        group(
            k,
            [k, rest](const double* x, double pad) __attribute__((always_inline)) {
                return padded_with(load_first<double>(x + k, rest), rest, pad);
            },
            [k, rest](auto* to, const Doubles& x)
                __attribute__((always_inline)) { store_first(to + k, x, rest); });
}

// high becomes high + x, and what that loses is added to low (Knuth's two-sum).
template <class X>
ADAFACTOR_INLINE void add_to_words(const X& x, X& high, X& low) {
    const X sum = high + x, part = sum - high;
    low = low + ((high - (sum - part)) + (x - part));
    high = sum;
}

// A sum of doubles in two words in every lane.
struct LaneWords {
    Doubles high = broadcast(0.0), low = broadcast(0.0);

    ADAFACTOR_INLINE void add(const Doubles& x) { add_to_words(x, high, low); }

    // The lanes' sum, whose high word is the nearest double.
    SumWords sum() const {
        alignas(64) double lane[kLanes<double>];
        store(lane, high);
        SumWords words{0, 0};
        for (const double x : lane) add_to_words(x, words.high, words.low);
        store(lane, low);
        for (const double x : lane) words.low += x;
        const double nearest = words.high + words.low;
        if (!__builtin_isfinite(nearest)) return {words.high, 0};
        words.low += words.high - nearest;
        words.high = nearest;
        return words;
    }
};

// Lanewise: y where x is 0, otherwise z.
ADAFACTOR_INLINE Doubles where_zero(const Doubles& x, const Doubles& y, const Doubles& z) {
    Doubles out;
    ADAFACTOR_PARTS out.part[part] = x.part[part] == 0 ? y.part[part] : z.part[part];
    return out;
}

// Lanewise: 0 where low <= x <= high, otherwise 1, as for nan.
ADAFACTOR_INLINE Doubles outside(const Doubles& x, double low, double high) {
    const Doubles zero = broadcast(0.0), one = broadcast(1.0);
    const Doubles least = broadcast(low), most = broadcast(high);
    Doubles out;
    ADAFACTOR_PARTS {
        const auto inside = (x.part[part] >= least.part[part]) & (x.part[part] <= most.part[part]);
        out.part[part] = inside ? zero.part[part] : one.part[part];
    }
    return out;
}

ADAFACTOR_INLINE Doubles smaller(const Doubles& x, const Doubles& y) {
    Doubles out;
    ADAFACTOR_PARTS out.part[part] = x.part[part] < y.part[part] ? x.part[part] : y.part[part];
    return out;
}

ADAFACTOR_INLINE Doubles larger(const Doubles& x, const Doubles& y) {
    Doubles out;
    ADAFACTOR_PARTS out.part[part] = x.part[part] > y.part[part] ? x.part[part] : y.part[part];
    return out;
}

ADAFACTOR_INLINE double smallest_lane(const Doubles& x) {
    alignas(64) double lane[kLanes<double>];
    store(lane, x);
    double smallest = lane[0];
    for (double other : lane) smallest = other < smallest ? other : smallest;
    return smallest;
}

ADAFACTOR_INLINE double largest_lane(const Doubles& x) {
    return -smallest_lane(broadcast(0.0) - x);
}
