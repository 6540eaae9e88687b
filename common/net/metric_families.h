// Metrics of a daemon, written as Prometheus' text format (version 0.0.4).
//
// Begin() a family, then Add() its samples; one thread, one page at a time.
#pragma once

#include <prometheus/metric_family.h>

#include <string>
#include <vector>

#include "common/net/http_server.h"

namespace ps::net {

class MetricFamilies {
 public:
  using Labels = std::vector<prometheus::ClientMetric::Label>;

  // The names of all begin with `prefix`, such as "ps_server_".
  explicit MetricFamilies(std::string prefix) : prefix_(std::move(prefix)) {}

  void Begin(const std::string& name, const std::string& help, prometheus::MetricType type);
  // A sample of a counter or a gauge.
  void Add(double value, Labels labels = {});
  void Add(prometheus::ClientMetric::Histogram histogram, Labels labels);
  std::string Text() const;

 private:
  const std::string prefix_;
  std::vector<prometheus::MetricFamily> families_;
};

HttpResponse MetricsResponse(std::string text);

}  // namespace ps::net
