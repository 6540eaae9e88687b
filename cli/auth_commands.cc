#include <memory>

#include "cli/commands.h"
#include "cli/node_key_files.h"
#include "common/error_id.h"
#include "common/net/list_file.h"
#include "common/net/loop.h"

namespace ps::cli {
namespace {

constexpr char kTrusted[] = "/etc/ds/trusted";
constexpr char kRoles[] = "coordinator, server, worker or operator";

struct AuthOptions {
  std::string role;
  std::string name;
  std::string key;
  std::string trusted = kTrusted;
  std::string until;
};

Result<net::Role> ParseRole(const std::string& text) {
  const auto role = net::RoleOf(text);
  if (role) return *role;
  return Error{ErrorId::kOptionValue, "`" + text + "` is no role: " + kRoles};
}

std::string UntilText(const net::TrustedKey& key) {
  return key.until_ms ? net::DateText(*key.until_ms) : "";
}

Json JsonOf(const net::TrustedKey& key, std::int64_t now_ms) {
  return Json{{"role", net::RoleName(key.role)},
              {"name", key.name},
              {"public_key", key.public_key},
              {"until", UntilText(key)},
              {"expired", key.until_ms && now_ms >= *key.until_ms}};
}

Result<ExitCode> Create(Globals& globals, const AuthOptions& options) {
  const OutputFormat format = PS_TRY(globals.Format());
  // The reader of the list judges role, name and date; the key comes later.
  auto key = net::ParseTrustedLine(options.role + " " + options.name + " " + std::string(40, '0') +
                                   (options.until.empty() ? "" : " until " + options.until));
  if (!key.ok()) return Error{ErrorId::kOptionValue, key.error().message};
  const std::string file = options.key.empty() ? options.name + ".key" : options.key;
  const net::TrustedKey made = PS_TRY(CreateNodeKey(*key, file, options.trusted));
  std::ostream& out = globals.environment.out;
  Json json = JsonOf(made, net::WallClockMs());
  json["key"] = file;
  json["trusted"] = options.trusted;
  if (WriteStructured(out, format, json)) return ExitCode::kOk;
  if (format == OutputFormat::kName) {
    out << made.public_key << "\n";
    return ExitCode::kOk;
  }
  out << FieldsText({{"role", options.role},
                     {"name", made.name},
                     {"public key", made.public_key},
                     {"secret in", file},
                     {"trusted in", options.trusted}});
  globals.environment.err << "Bring " << file << " to its node, and " << options.trusted
                          << " to all nodes: they read it again by themselves\n";
  return ExitCode::kOk;
}

Result<ExitCode> List(Globals& globals, const AuthOptions& options) {
  const OutputFormat format = PS_TRY(globals.Format());
  const auto list = PS_TRY(net::TrustedKeys::ReadFile(options.trusted));
  std::ostream& out = globals.environment.out;
  Json keys = Json::array();
  Table table({"ROLE", "NAME", "PUBLIC KEY", "UNTIL"});
  for (const auto& [public_key, key] : list.keys()) {
    keys.push_back(JsonOf(key, net::WallClockMs()));
    const std::string until = UntilText(key);
    table.Add({net::RoleName(key.role), key.name, public_key,
               FlagOf(keys.back(), "expired") ? until + ", expired" : until});
  }
  if (WriteStructured(out, format, Json{{"keys", keys}})) return ExitCode::kOk;
  if (format == OutputFormat::kName) {
    for (const Json& key : keys) out << TextOf(key, "name") << "\n";
  } else {
    out << table.ToString();
  }
  return ExitCode::kOk;
}

Result<ExitCode> Revoke(Globals& globals, const AuthOptions& options) {
  const OutputFormat format = PS_TRY(globals.Format());
  std::vector<net::Role> roles;
  if (!options.role.empty()) roles.push_back(PS_TRY(ParseRole(options.role)));
  const auto gone = PS_TRY(RevokeNodeKeys(options.name, roles, options.trusted));
  Json keys = Json::array();
  for (const net::TrustedKey& key : gone) keys.push_back(JsonOf(key, net::WallClockMs()));
  std::ostream& out = globals.environment.out;
  if (WriteStructured(out, format, Json{{"revoked", keys}})) return ExitCode::kOk;
  for (const net::TrustedKey& key : gone) {
    out << net::RoleName(key.role) << " " << key.name << " is not trusted any more\n";
  }
  globals.environment.err << "Bring " << options.trusted
                          << " to all nodes: they read it again by themselves\n";
  return ExitCode::kOk;
}

}  // namespace

void AddAuthCommands(CLI::App& app, Globals& globals) {
  CLI::App* const group = AddGroup(
      app, "auth", "Keys of the nodes and operators of a cluster, who is trusted, certificates");
  const auto trusted = [](CLI::App* command, AuthOptions& options) {
    command->add_option("--trusted", options.trusted, "The list, the same on all nodes")
        ->type_name("FILE")
        ->capture_default_str();
  };

  CLI::App* const create = AddCommand(
      *group, "create", "Make a pair of keys for a daemon or an operator, and trust it",
      "  ds-cli auth create coordinator node1 --key /etc/ds/keys/coordinator.key\n"
      "  ds-cli auth create server ps-server@0.node2 --key ps-server@0.node2.key --trusted "
      "trusted\n"
      "  ds-cli auth create operator anna --key ~/.config/ds/anna.key --until 2027-06-30\n",
      globals);
  const auto created = std::make_shared<AuthOptions>();
  create->add_option("role", created->role, kRoles)->required()->type_name("ROLE");
  create->add_option("name", created->name, "For people")->required()->type_name("NAME");
  create->add_option("--key", created->key, "Where the pair goes, for its owner alone (NAME.key)")
      ->type_name("FILE");
  create->add_option("--until", created->until, "From this day on nobody trusts it")
      ->type_name("DATE");
  trusted(create, *created);
  create->callback([&globals, created] {
    globals.action = [&globals, created] { return Create(globals, *created); };
  });

  CLI::App* const list = AddCommand(*group, "list", "Who is trusted",
                                    "  ds-cli auth list\n  ds-cli auth list -o json\n", globals);
  const auto listed = std::make_shared<AuthOptions>();
  trusted(list, *listed);
  list->callback([&globals, listed] {
    globals.action = [&globals, listed] { return List(globals, *listed); };
  });

  CLI::App* const revoke =
      AddCommand(*group, "revoke", "Trust somebody no more",
                 "  ds-cli auth revoke node7\n  ds-cli auth revoke node7 --role worker\n", globals);
  const auto revoked = std::make_shared<AuthOptions>();
  revoke->add_option("name", revoked->name, "As in the list")->required()->type_name("NAME");
  revoke->add_option("--role", revoked->role, "Only in this role")->type_name("ROLE");
  trusted(revoke, *revoked);
  revoke->callback([&globals, revoked] {
    globals.action = [&globals, revoked] { return Revoke(globals, *revoked); };
  });

  CLI::App* const zookeeper = AddCommand(
      *group, "zookeeper", "Make the secret that guards what the cluster keeps in ZooKeeper",
      "  ds-cli auth zookeeper --secret /etc/ds/keys/zookeeper.secret\n", globals);
  const auto secret = std::make_shared<std::string>();
  zookeeper->add_option("--secret", *secret, "Where it goes, for its owner alone")
      ->required()
      ->type_name("FILE");
  zookeeper->callback([&globals, secret] {
    globals.action = [&globals, secret]() -> Result<ExitCode> {
      PS_TRY(CreateZooKeeperSecret(*secret));
      globals.environment.err << "Bring " << *secret
                              << " to all nodes, for --zookeeper-secret of every daemon\n";
      return ExitCode::kOk;
    };
  });

  AddCertificateCommand(*group, globals);
}

}  // namespace ps::cli
