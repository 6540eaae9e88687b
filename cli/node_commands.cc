#include "cli/commands.h"

namespace ps::cli {
namespace {

// Lanes come as a list of endpoints or as their number.
std::string SizeText(const Json& node) {
  const Json& lanes = MemberOf(node, "lanes");
  return lanes.is_array() ? std::to_string(lanes.size())
                          : TextOf(node, "lanes", TextOf(node, "slots"));
}

std::string JobsText(const Json& jobs) {
  if (!jobs.is_array()) return "";
  std::string text;
  for (const Json& job : jobs) {
    if (!text.empty()) text += ",";
    text += job.is_string() ? job.get<std::string>() : job.dump();
  }
  return text;
}

Result<ExitCode> ListNodes(Globals& globals) {
  const OutputFormat format = PS_TRY(globals.Format());
  Api api = PS_TRY(globals.OpenApi());
  const Json answer = PS_TRY(api.Get("/v1/nodes"));
  std::ostream& out = globals.environment.out;
  if (WriteStructured(out, format, answer)) return ExitCode::kOk;
  const Json& nodes = MemberOf(answer, "nodes");
  if (format == OutputFormat::kName) {
    for (const Json& node : nodes) out << Printable(TextOf(node, "name")) << "\n";
    return ExitCode::kOk;
  }
  const bool wide = format == OutputFormat::kWide;
  std::vector<std::string> header = {"NAME", "KIND", "STATE", "HOST", "LANES/SLOTS", "JOBS"};
  if (wide) header.insert(header.end(), {"LABEL", "PROCESS"});
  Table table(header);
  for (const Json& node : nodes) {
    std::string state = TextOf(node, "state");
    if (FlagOf(node, "leader")) state += (state.empty() ? "" : ",") + std::string("leader");
    std::vector<std::string> row = {
        TextOf(node, "name"), TextOf(node, "kind"), state,
        TextOf(node, "host"), SizeText(node),       JobsText(MemberOf(node, "jobs"))};
    if (wide) row.insert(row.end(), {TextOf(node, "label"), TextOf(node, "procid")});
    table.Add(row);
  }
  out << table.ToString();
  return ExitCode::kOk;
}

}  // namespace

void AddNodeCommands(CLI::App& app, Globals& globals) {
  CLI::App* group = AddGroup(app, "node", "Servers, workers and coordinators of the cluster");
  AddCommand(*group, "list", "List them with their state",
             "  ds-cli node list\n  ds-cli node list -o wide\n", globals)
      ->callback([&globals] { globals.action = [&globals] { return ListNodes(globals); }; });
}

}  // namespace ps::cli
