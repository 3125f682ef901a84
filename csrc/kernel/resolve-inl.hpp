// The loops over rows and columns between the two sweeps, in double.

// Adds the groups' sums in order and finishes the means of the crossed axis, for [begin, end).
void add_groups(const CrossSums& sums, std::size_t begin, std::size_t end, const Axis& crossed) {
    const RunningMean<double> running_mean(sums.moment);
    const double scale = sums.moment.scale, length = sums.length;
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
        crossed.running_mean[k] = running_mean(sums.old[k], sum_sq[k] * scale / length);
    }
}

AxisSummary summarize(const Axis& axis) {
    const Doubles zero = broadcast(0.0), infinity = broadcast(double(__builtin_inf()));
    const Doubles eps_means = broadcast(axis.eps_means);
    LaneWords sum, total_sq;
    Doubles smallest = infinity, smallest_live = infinity, largest_live = zero;
    for_groups(axis.size, [&](std::size_t, auto load_group, auto) __attribute__((always_inline)) {
        const Doubles mean = load_group(axis.running_mean, axis.running_mean[0]) + eps_means;
        const Doubles sum_sq = load_group(axis.sum_sq, axis.sum_sq[0]);
        sum.add(load_group(axis.running_mean, 0));
        total_sq.add(load_group(axis.sum_sq, 0));
        smallest = smaller(mean, smallest);
        smallest_live = smaller(where_zero(sum_sq, infinity, mean), smallest_live);
        largest_live = larger(where_zero(sum_sq, zero, mean), largest_live);
    });
    const SumWords means = sum.sum(), squares = total_sq.sum();
    return {means.high,
            squares.high,
            smallest_lane(smallest),
            smallest_lane(smallest_live),
            largest_lane(largest_live),
            means.low,
            squares.low};
}

// The bits of numbers from 0 to `limit`, as integers, are from 0 to its own.
template <class T, class Bits>
bool are_all_within(const T* numbers, std::size_t n, T limit) {
    Bits limit_bits, outside = 0;
    __builtin_memcpy(&limit_bits, &limit, sizeof(limit));
    for (std::size_t k = 0; k < n; ++k) {
        Bits bits;
        __builtin_memcpy(&bits, numbers + k, sizeof(bits));
        outside |= (limit_bits - bits) | bits;
    }
    if (outside >> (8 * sizeof(Bits) - 1) == 0) return true;
    for (std::size_t k = 0; k < n; ++k)  // a zero may be negative
        if (!(numbers[k] >= 0 && numbers[k] <= limit)) return false;
    return true;
}

bool are_within(const Block& run, double limit) {
    if (run.format == Format::float64)
        return are_all_within<double, std::uint64_t>(numbers_of<const double>(run), run.cols,
                                                     limit);
    const float most = limit < __FLT_MAX__ ? float(limit) : __FLT_MAX__;
    return are_all_within<float, std::uint32_t>(numbers_of<const float>(run), run.cols, most);
}

// sum of weighted / (running mean + eps_means), over lines with a gradient.
double sum_over_means(const Axis& axis, const double* weighted) {
    const Doubles zero = broadcast(0.0), eps_means = broadcast(axis.eps_means);
    Doubles sum = zero;
    for_groups(axis.size, [&](std::size_t, auto load_group, auto) __attribute__((always_inline)) {
        const Doubles mean = load_group(axis.running_mean, 1) + eps_means;
        const Doubles term = load_group(weighted, 0) / mean;
        sum = sum + where_zero(load_group(axis.sum_sq, 0), zero, term);
    });
    return sum_lanes(sum);
}

template <class T>
void fill_factors(const Axis& axis, const FactorRule& rule, std::size_t begin, std::size_t end,
                  T* out) {
    const Doubles scale = broadcast(rule.scale), otherwise = broadcast(rule.otherwise);
    const Doubles eps_means = broadcast(axis.eps_means);
    const auto fill = [&](std::size_t, auto load_group,
                          auto store_group) __attribute__((always_inline)) {
        const Doubles root = square_root(load_group(axis.running_mean + begin, 1) + eps_means);
        const Doubles factor = rule.inverse ? scale / root : root / scale;
        const Doubles sum_sq = load_group(axis.sum_sq + begin, 1);
        store_group(out + begin, rule.literal ? factor : where_zero(sum_sq, otherwise, factor));
    };
    for_groups(end - begin, fill);
}
