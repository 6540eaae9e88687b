#include "common/net/metric_families.h"

#include <prometheus/text_serializer.h>

#include <sstream>
#include <utility>

namespace ps::net {

void MetricFamilies::Begin(const std::string& name, const std::string& help,
                           prometheus::MetricType type) {
  families_.emplace_back();
  families_.back().name = prefix_ + name;
  families_.back().help = help;
  families_.back().type = type;
}

void MetricFamilies::Add(double value, Labels labels) {
  prometheus::ClientMetric metric;
  metric.label = std::move(labels);
  metric.counter.value = value;
  metric.gauge.value = value;
  families_.back().metric.push_back(std::move(metric));
}

void MetricFamilies::Add(prometheus::ClientMetric::Histogram histogram, Labels labels) {
  prometheus::ClientMetric metric;
  metric.label = std::move(labels);
  metric.histogram = std::move(histogram);
  families_.back().metric.push_back(std::move(metric));
}

std::string MetricFamilies::Text() const {
  std::ostringstream out;
  prometheus::TextSerializer().Serialize(out, families_);
  return out.str();
}

HttpResponse MetricsResponse(std::string text) {
  HttpResponse response = TextResponse(200, std::move(text));
  response.content_type = "text/plain; version=0.0.4; charset=utf-8";
  return response;
}

}  // namespace ps::net
