#include "cli/wait_until.h"

#include <chrono>
#include <utility>

#include "cli/output.h"
#include "common/error_id.h"

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

Result<Json> WaitUntil(Api& api, Environment& environment, const std::string& path, Json answer,
                       const std::function<Result<std::string>(const Json&)>& missing,
                       std::int64_t timeout_ms, const std::string& next) {
  const std::int64_t begun = environment.now_ms();
  std::string told;
  while (true) {
    const std::string still = PS_TRY(missing(answer));
    if (still.empty()) return answer;
    if (still != told) environment.err << Printable(still) << std::endl;
    told = still;
    if (environment.now_ms() - begun >= timeout_ms) {
      return Error{ErrorId::kWaitTimeout, still + " after " + std::to_string(timeout_ms / 1000) +
                                              " s; it goes on: " + next};
    }
    environment.sleep(std::chrono::milliseconds(500));
    if (environment.interrupted()) return Error{ErrorCode::kClosed, "interrupted"};
    auto again = api.Get(path);
    if (again.ok()) {
      answer = std::move(again).value();
    } else if (again.error().code != ErrorCode::kUnreachable) {
      return again.error();  // who takes over answers soon
    }
  }
}

Result<Json> WaitUntilDrained(Api& api, Environment& environment, Json answer,
                              const std::set<std::string>& names, std::int64_t timeout_ms) {
  return WaitUntil(
      api, environment, "/v1/nodes", std::move(answer),
      [&names](const Json& nodes) -> Result<std::string> {
        return StillThere(MemberOf(nodes, "nodes"), names);
      },
      timeout_ms, "ds-cli node list -o wide");
}

}  // namespace ps::cli
