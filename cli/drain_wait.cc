#include "cli/drain_wait.h"

#include <chrono>
#include <utility>

#include "cli/output.h"

namespace ps::cli {
namespace {

// "server-1 has 12 shards of fashion-mlp"; empty if all have left.
std::string StillThere(const Json& nodes, const std::set<std::string>& names) {
  std::string text;
  for (const Json& node : nodes) {
    const std::string name = TextOf(node, "name");
    if (!names.contains(name) || TextOf(node, "state") == "drained") continue;
    const std::string kind = TextOf(node, "kind");
    text += (text.empty() ? "" : "; ") + kind + " " + name + " ";
    text += kind == "server" ? "has " + CountText(NumberOf(node, "shards")) + " copies of shards"
                             : "has tasks, or pushes that no checkpoint has yet";
    if (const std::string jobs = JobNames(MemberOf(node, "jobs")); !jobs.empty()) {
      text += " (" + jobs + ")";
    }
  }
  return text;
}

}  // namespace

std::string JobNames(const Json& jobs) {
  if (!jobs.is_array()) return "";
  std::string text;
  for (const Json& job : jobs) {
    if (!text.empty()) text += ",";
    text += job.is_string() ? job.get<std::string>() : job.dump();
  }
  return text;
}

Result<Json> WaitUntilDrained(Api& api, Environment& environment, Json answer,
                              const std::set<std::string>& names, std::int64_t timeout_ms) {
  const std::int64_t begun = environment.now_ms();
  std::string told;
  while (true) {
    const std::string still = StillThere(MemberOf(answer, "nodes"), names);
    if (still.empty()) return answer;
    if (still != told) environment.err << Printable(still) << std::endl;
    told = still;
    if (environment.now_ms() - begun >= timeout_ms) {
      return Error{ErrorCode::kTimeout, still + " after " + std::to_string(timeout_ms / 1000) +
                                            " s; it goes on: ds-cli node list -o wide"};
    }
    environment.sleep(std::chrono::milliseconds(500));
    if (environment.interrupted()) return Error{ErrorCode::kClosed, "interrupted"};
    auto nodes = api.Get("/v1/nodes");
    if (nodes.ok()) {
      answer = std::move(nodes).value();
    } else if (nodes.error().code != ErrorCode::kUnreachable) {
      return nodes.error();  // who takes over answers soon
    }
  }
}

}  // namespace ps::cli
