#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "common/check.h"
#include "ps-worker/engine/model.h"

namespace ps::worker {

Batch Batch::Part(std::uint32_t begin, std::uint32_t count) const {
  PS_CHECK(begin + count <= records, begin, count, records);
  Batch part = *this;
  part.records = count;
  part.first += begin;
  part.position += begin;
  const auto of_records = [&](auto values) {
    const std::size_t each = records == 0 ? 0 : values.size() / records;
    return values.subspan(begin * each, count * each);
  };
  part.features = of_records(features);
  part.labels = of_records(labels);
  part.ids = of_records(ids);
  return part;
}

void EvaluationSums::Add(const EvaluationSums& other) {
  loss += other.loss;
  metric += other.metric;
  records += other.records;
  positive_scores.insert(positive_scores.end(), other.positive_scores.begin(),
                         other.positive_scores.end());
  negative_scores.insert(negative_scores.end(), other.negative_scores.begin(),
                         other.negative_scores.end());
}

double EvaluationSums::mean_metric() const {
  if (!positive_scores.empty() || !negative_scores.empty()) {
    return AreaUnderCurve(positive_scores, negative_scores);
  }
  return records == 0 ? 0 : metric / static_cast<double>(records);
}

double AreaUnderCurve(std::vector<float> positive_scores, std::vector<float> negative_scores) {
  if (positive_scores.empty() || negative_scores.empty()) return 0.5;
  std::sort(positive_scores.begin(), positive_scores.end());
  std::sort(negative_scores.begin(), negative_scores.end());
  // Of the negatives before `below` the score is lower, of those before `not_above` not higher.
  double won = 0;
  std::size_t below = 0;
  std::size_t not_above = 0;
  for (const float score : positive_scores) {
    while (below < negative_scores.size() && negative_scores[below] < score) ++below;
    not_above = std::max(not_above, below);
    while (not_above < negative_scores.size() && negative_scores[not_above] == score) ++not_above;
    won += static_cast<double>(below) + static_cast<double>(not_above - below) / 2;
  }
  return won / static_cast<double>(positive_scores.size()) /
         static_cast<double>(negative_scores.size());
}

}  // namespace ps::worker
