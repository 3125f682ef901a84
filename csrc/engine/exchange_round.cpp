#include "engine/exchange_round.hpp"

#include <algorithm>
#include <chrono>

namespace adafactor {
namespace {

// A slice ends after so long, or with the tasks of so many elements at the earliest: the rest of a
// bucket waits until the caller has seen to what is under way.
constexpr std::chrono::microseconds kSlice{500};
constexpr std::size_t kSliceTasks = 16;  // of a thread

template <class Body>  // body(position in `tensors`), which must not throw
void for_each(const Team& team, const std::vector<ShardedTensor*>& tensors, const Body& body) {
    team.for_tasks(tensors.size(), Order::forwards, [&](std::size_t k, int, char*) { body(k); });
}

}  // namespace

std::size_t Buckets::end_of(std::size_t begin, const std::vector<std::size_t>& lengths) const {
    std::size_t end = begin, total = 0;
    while (end < lengths.size() && (end == begin || total + lengths[end] <= length))
        total += lengths[end++];
    return end;
}

ExchangeRound::ExchangeRound(const std::vector<TakesPart>& tensors, const Buckets& buckets,
                             MessageArrays& arrays, Scratch& for_measure)
    : arrays_(arrays), for_measure_(for_measure) {
    std::vector<std::size_t> lengths;
    for (const TakesPart& each : tensors)
        lengths.push_back((each.first ? each.tensor->bucket_length() : 0) +
                          (each.second ? each.tensor->n_second_sum() : 0));
    std::size_t begin = 0;
    do {
        const std::size_t end = buckets.end_of(begin, lengths);
        Bucket& bucket = buckets_.emplace_back();
        for (; begin < end; ++begin) {
            const TakesPart& each = tensors[begin];
            if (each.first) bucket.first.push_back(each.tensor);
            if (each.second) bucket.second.push_back(each.tensor);
        }
    } while (begin < lengths.size());
    buckets_[0].header_max = buckets.n_header_max;
    buckets_[0].header_sum = buckets.n_header_sum;
}

Exchange ExchangeRound::next(const Team& team, bool in_slices) {
    if (phase_ == Phase::measure) {
        if (!measure(team, in_slices)) return {};
        phase_ = Phase::exchange;
        if (at_ > 0) return {{}, wait_for(buckets_[at_ - 1].max_number)};
    }
    if (phase_ == Phase::end) {
        if (disagreed_ == nullptr) take_sums(team);
        phase_ = Phase::over;
        return {};
    }
    // The maximum before is over.
    if (at_ > 0) take_max(buckets_[at_ - 1]);
    if (disagreed_ != nullptr) {
        const std::size_t n_left = wait_for(n_begun_);
        phase_ = n_left > 0 ? Phase::end : Phase::over;
        return {{}, n_left};
    }
    Exchange exchange;
    if (at_ < buckets_.size()) begin_max(buckets_[at_], exchange);
    if (at_ > 0) begin_sum(buckets_[at_ - 1], team, exchange);
    ++at_;
    if (at_ < buckets_.size()) {
        phase_ = Phase::measure;
    } else if (at_ == buckets_.size()) {
        exchange.n_over = wait_for(buckets_.back().max_number);
    } else {
        phase_ = Phase::end;
        exchange.n_over = wait_for(n_begun_);
    }
    return exchange;
}

// Whether the bucket is measured: else there is more to do, after the caller has been called.
bool ExchangeRound::measure(const Team& team, bool in_slices) {
    Bucket& bucket = buckets_[at_];
    const bool is_watched = in_slices && n_begun_ > n_over_;
    const auto began = std::chrono::steady_clock::now();
    if (n_to_measure_ == 0) {
        take_sums(team);
        prepare_measure(bucket);
    }
    while (n_measured_ < n_to_measure_) {
        if (is_watched && std::chrono::steady_clock::now() - began > kSlice) return false;
        measure_some(bucket, team, is_watched);
    }
    n_measured_ = n_to_measure_ = 0;
    return true;
}

void ExchangeRound::prepare_measure(Bucket& bucket) {
    for (const ShardedTensor* tensor : bucket.first)
        for (TensorStep* step : tensor->steps())
            if (!step->is_measured()) step->allocate_sums(for_measure_);
    tasks_ = ShardedTasks(bucket.first,
                          [](const TensorStep& step) { return step.n_measure_tasks_left(); });
    n_to_measure_ = tasks_.size() + bucket.first.size() + bucket.second.size();
}

void ExchangeRound::measure_some(Bucket& bucket, const Team& team, bool in_slices) {
    if (n_measured_ < tasks_.size()) {
        const std::size_t most =
            in_slices ? kSliceTasks * std::size_t(team.threads()) : tasks_.size();
        const std::size_t end = std::min(n_measured_ + most, tasks_.size());
        tasks_.run(team, Order::forwards, n_measured_, end,
                   [](TensorStep& step, std::size_t task, char* scratch) {
                       if (!step.is_measured()) step.measure(task, scratch);
                       step.look_at_due(task);
                   });
        n_measured_ = end;
        return;
    }
    const std::size_t k = n_measured_++ - tasks_.size();
    if (k < bucket.first.size()) {
        if (bucket.first[k]->is_given()) bucket.first[k]->finish_measure(team);
    } else {
        bucket.second[k - bucket.first.size()]->measure_second(team);
    }
}

std::size_t ExchangeRound::begin(const Message& message, Exchange& exchange) {
    exchange.begins.push_back(message);
    return ++n_begun_;
}

// How many messages more have to be over, so that those up to this one are.
std::size_t ExchangeRound::wait_for(std::size_t number) {
    const std::size_t n = number - std::min(number, n_over_);
    n_over_ += n;
    return n;
}

void ExchangeRound::begin_max(Bucket& bucket, Exchange& exchange) {
    std::size_t n = bucket.header_max;
    for (const ShardedTensor* tensor : bucket.first) n += tensor->n_max();
    for (const ShardedTensor* tensor : bucket.second) n += tensor->n_second_max();
    bucket.max = arrays_.take(n, kNeutral);
    double* to = bucket.max->data() + bucket.header_max;
    for (const ShardedTensor* tensor : bucket.first) {
        tensor->put_max(to);
        to += tensor->n_max();
    }
    for (const ShardedTensor* tensor : bucket.second) {
        tensor->put_second_max(to);
        to += tensor->n_second_max();
    }
    bucket.max_number = begin({bucket.max, true}, exchange);
}

void ExchangeRound::take_max(Bucket& bucket) {
    const double* from = bucket.max->data() + bucket.header_max;
    for (ShardedTensor* tensor : bucket.first) {
        tensor->take_max(from);
        from += tensor->n_max();
        const bool agrees = !tensor->presence_differs() && !tensor->grad_format_differs();
        if (disagreed_ == nullptr && !agrees) disagreed_ = tensor;
    }
    for (ShardedTensor* tensor : bucket.second) {
        tensor->take_second_max(from);
        from += tensor->n_second_max();
    }
    const auto is_absent = [](ShardedTensor* tensor) { return !tensor->is_given_anywhere(); };
    bucket.first.erase(std::remove_if(bucket.first.begin(), bucket.first.end(), is_absent),
                       bucket.first.end());
}

void ExchangeRound::begin_sum(Bucket& bucket, const Team& team, Exchange& exchange) {
    std::size_t n = bucket.header_sum, n_groups = 1;
    for (const ShardedTensor* tensor : bucket.first)
        n_groups = std::max(n_groups, tensor->part().n_groups());
    std::vector<std::size_t> of_groups(n_groups, 0);
    for (ShardedTensor* tensor : bucket.first) {
        tensor->add_up(team);
        tensor->place_in_groups(of_groups);
        bucket.place.push_back(n);
        n += tensor->n_sum();
    }
    for (ShardedTensor* tensor : bucket.second) {
        tensor->add_up_second(team);
        bucket.place.push_back(n);
        n += tensor->n_second_sum();
    }
    bucket.sum = arrays_.take(n, 0);
    double* const to = bucket.sum->data();
    for_each(team, bucket.first,
             [&](std::size_t k) { bucket.first[k]->put_sum(to + bucket.place[k]); });
    for (std::size_t k = 0; k < bucket.second.size(); ++k)
        bucket.second[k]->put_second_sum(to + bucket.place[bucket.first.size() + k]);
    bucket.sum_number = begin({bucket.sum, false}, exchange);
    begin_group_sums(bucket, team, exchange, of_groups);
}

// All ranks of a group know that it has something to add up. They begin their groups' sums in one
// order, which their numbers follow.
void ExchangeRound::begin_group_sums(Bucket& bucket, const Team& team, Exchange& exchange,
                                     const std::vector<std::size_t>& sizes) {
    bucket.group_sums.assign(sizes.size(), nullptr);
    for (std::size_t group = 0; group < sizes.size(); ++group) {
        if (sizes[group] == 0) continue;
        const MessageArray array = arrays_.take(sizes[group], 0);
        bucket.group_sums[group] = array->data();
        bucket.sum_number = begin({array, false, int(group)}, exchange);
    }
    for_each(team, bucket.first,
             [&](std::size_t k) { bucket.first[k]->put_in_groups(bucket.group_sums); });
}

// Of all buckets whose sums are over.
void ExchangeRound::take_sums(const Team& team) {
    for (; n_summed_ < buckets_.size(); ++n_summed_) {
        Bucket& bucket = buckets_[n_summed_];
        if (bucket.sum_number == 0 || bucket.sum_number > n_over_) return;
        double* const from = bucket.sum->data();
        for_each(team, bucket.first, [&](std::size_t k) {
            bucket.first[k]->take_from_groups(bucket.group_sums);
            bucket.first[k]->take_sum(from + bucket.place[k]);
        });
        for (std::size_t k = 0; k < bucket.second.size(); ++k)
            bucket.second[k]->take_second_sum(from + bucket.place[bucket.first.size() + k]);
    }
}

}  // namespace adafactor
