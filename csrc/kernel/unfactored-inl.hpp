// Both sweeps of a tensor that keeps its full second moment, over runs of consecutive elements.
// The new v is computed twice instead of stored early: measure writes nothing. All in double, as v.

struct NewMoment {
    Lanes<double> v, u;
};

ADAFACTOR_INLINE NewMoment new_moment(const Lanes<double>& g, const Lanes<double>& v,
                                      const Unfactored& moment) {
    const Lanes<double> eps = broadcast(moment.eps);
    NewMoment out;
    out.v = broadcast(moment.beta2) * v + broadcast(1 - moment.beta2) * (g * g + eps);
    out.u = g / (square_root(out.v) + eps);
    return out;
}

template <class G>
UnfactoredSums measure_unfactored(const G* grad, const double* v, std::size_t n,
                                  const Unfactored& moment) {
    Lanes<double> grad_sq = broadcast(0.0), u_sq = broadcast(0.0);
    std::size_t k = 0;
    for (; k + kLanes<double> <= n; k += kLanes<double>) {
        const Lanes<double> g = load<double>(grad + k);
        const NewMoment now = new_moment(g, load<double>(v + k), moment);
        grad_sq = grad_sq + g * g;
        u_sq = u_sq + now.u * now.u;
    }
    if (k < n) {
        const Lanes<double> g = load_first<double>(grad + k, n - k);
        const NewMoment now = new_moment(g, load_first<double>(v + k, n - k), moment);
        grad_sq = grad_sq + g * g;
        alignas(64) double lane[kLanes<double>] = {};
        store_first(lane, now.u, n - k);  // past the end u may be 0 / 0
        const Lanes<double> u = load<double>(lane);
        u_sq = u_sq + u * u;
    }
    return {sum_lanes(grad_sq), sum_lanes(u_sq)};
}

template <class P, class G>
void apply_unfactored(P* param, const G* grad, double* v, std::size_t n, const Unfactored& moment,
                      double step) {
    const Lanes<double> s = broadcast(step);
    std::size_t k = 0;
    for (; k + kLanes<double> <= n; k += kLanes<double>) {
        const NewMoment now = new_moment(load<double>(grad + k), load<double>(v + k), moment);
        store(param + k, load<double>(param + k) - s * now.u);
        store(v + k, now.v);
    }
    if (k < n) {
        const NewMoment now = new_moment(load_first<double>(grad + k, n - k),
                                         load_first<double>(v + k, n - k), moment);
        store_first(param + k, load_first<double>(param + k, n - k) - s * now.u, n - k);
        store_first(v + k, now.v, n - k);
    }
}
