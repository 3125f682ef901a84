// The loops over rows and columns between the two sweeps, in double.

// Adds the groups' sums in order and finishes the means of the crossed axis, for [begin, end).
void add_groups(const CrossSums& sums, std::size_t begin, std::size_t end, const Axis& crossed) {
    const double beta2 = sums.beta2, eps = sums.eps, length = sums.length;
    double* const sum_sq = sums.sum_sq;
    double* const weighted = sums.weighted;
    for (std::size_t g = 1; g < sums.n_groups; ++g) {
        const double* const more_sq = sum_sq + g * crossed.size;
        const double* const more_weighted = weighted + g * crossed.size;
        for (std::size_t k = begin; k < end; ++k) {
            sum_sq[k] += more_sq[k];
            weighted[k] += more_weighted[k];
        }
    }
    for (std::size_t k = begin; k < end; ++k) {
        crossed.sum_sq[k] = sum_sq[k];
        crossed.running_mean[k] = beta2 * sums.old[k] + (1 - beta2) * (sum_sq[k] / length + eps);
    }
}

using Doubles = Lanes<double>;

// Calls group(load) for each group of lanes, where load(array, pad) has the array's numbers of that
// group, and `pad` past the end.
template <class Group>
ADAFACTOR_INLINE void for_groups(std::size_t n, const Group& group) {
    std::size_t k = 0;
    for (; k + kLanes<double> <= n; k += kLanes<double>)
        group(k, [k](const double* x, double)
                     __attribute__((always_inline)) { return load<double>(x + k); });
    if (k < n)
        group(k, [k, n](const double* x, double pad) __attribute__((always_inline)) {
            alignas(64) double padded[kLanes<double>];
            for (std::size_t l = 0; l < kLanes<double>; ++l) padded[l] = k + l < n ? x[k + l] : pad;
            return load<double>(padded);
        });
}

// Lanewise: y where x is 0, otherwise z.
ADAFACTOR_INLINE Doubles where_zero(const Doubles& x, const Doubles& y, const Doubles& z) {
    Doubles out;
    ADAFACTOR_PARTS out.part[part] = x.part[part] == 0 ? y.part[part] : z.part[part];
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

Range range_of(const Axis& axis) {
    const Doubles zero = broadcast(0.0), infinity = broadcast(double(__builtin_inf()));
    Doubles sum = zero, smallest = infinity, smallest_live = infinity, largest_live = zero;
    for_groups(axis.size, [&](std::size_t, auto load_group) __attribute__((always_inline)) {
        const Doubles mean = load_group(axis.running_mean, axis.running_mean[0]);
        const Doubles sum_sq = load_group(axis.sum_sq, axis.sum_sq[0]);
        sum = sum + load_group(axis.running_mean, 0);
        smallest = smaller(mean, smallest);
        smallest_live = smaller(where_zero(sum_sq, infinity, mean), smallest_live);
        largest_live = larger(where_zero(sum_sq, zero, mean), largest_live);
    });
    return {sum_lanes(sum), smallest_lane(smallest), smallest_lane(smallest_live),
            largest_lane(largest_live)};
}

// sum of weighted / running mean, over lines with a gradient.
double sum_over_means(const Axis& axis, const double* weighted) {
    const Doubles zero = broadcast(0.0);
    Doubles sum = zero;
    for_groups(axis.size, [&](std::size_t, auto load_group) __attribute__((always_inline)) {
        const Doubles term = load_group(weighted, 0) / load_group(axis.running_mean, 1);
        sum = sum + where_zero(load_group(axis.sum_sq, 0), zero, term);
    });
    return sum_lanes(sum);
}

template <class T>
void fill_factors(const Axis& axis, const FactorRule& rule, std::size_t begin, std::size_t end,
                  T* out) {
    const Doubles scale = broadcast(rule.scale), otherwise = broadcast(rule.otherwise);
    for_groups(end - begin, [&](std::size_t k, auto load_group) __attribute__((always_inline)) {
        const Doubles root = square_root(load_group(axis.running_mean + begin, 1));
        const Doubles factor = rule.inverse ? scale / root : root / scale;
        const Doubles sum_sq = load_group(axis.sum_sq + begin, 1);
        const Doubles x = rule.literal ? factor : where_zero(sum_sq, otherwise, factor);
        const std::size_t n = end - begin - k;
        if (n >= kLanes<double>)
            store(out + begin + k, x);
        else
            store_first(out + begin + k, x, n);
    });
}
