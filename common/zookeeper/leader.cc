#include "common/zookeeper/leader.h"

#include <spdlog/spdlog.h>

#include <nlohmann/json.hpp>
#include <optional>
#include <vector>

#include "common/zookeeper/member.h"

namespace ps::zk {

std::string ControlEndpointOf(const std::string& node_data) {
  const nlohmann::json data = nlohmann::json::parse(node_data, nullptr, false);
  if (!data.is_object()) return "";
  const auto control = data.find("control");
  if (control == data.end() || !control->is_string()) return "";
  return control->get<std::string>();
}

std::string LeaderEndpoint(const ChildrenWatcher::Children& coordinators) {
  std::vector<std::string> names;
  for (const auto& [name, value] : coordinators) names.push_back(name);
  const std::optional<std::string> leader = LowestSequence(names);
  if (!leader.has_value()) return "";
  std::string endpoint = ControlEndpointOf(coordinators.at(*leader).data);
  if (endpoint.empty()) {
    spdlog::warn("the leader's node /coordinators/{} does not name its control endpoint", *leader);
  }
  return endpoint;
}

}  // namespace ps::zk
