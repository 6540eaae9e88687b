#include <memory>

#include "cli/api_token_files.h"
#include "cli/commands.h"
#include "common/error_id.h"
#include "common/net/list_file.h"
#include "common/net/loop.h"

namespace ps::cli {
namespace {

constexpr char kTokens[] = "/etc/ds/tokens";
constexpr char kRoles[] = "viewer, submitter or admin";

struct TokenOptions {
  std::string role;
  std::string name;
  std::string to;
  std::string tokens = kTokens;
  std::string until;
};

std::string UntilText(const net::ApiToken& token) {
  return token.until_ms ? net::DateText(*token.until_ms) : "";
}

Json JsonOf(const net::ApiToken& token) {
  return Json{{"role", net::ApiRoleName(token.role)},
              {"name", token.name},
              {"sha256", token.hash},
              {"until", UntilText(token)},
              {"expired", token.expired(net::WallClockMs())}};
}

Result<ExitCode> Create(Globals& globals, const TokenOptions& options) {
  const OutputFormat format = PS_TRY(globals.Format());
  // The reader of the list judges role, name and date; the token comes later.
  auto token =
      net::ParseApiTokenLine(options.role + " " + options.name + " " + std::string(64, '0') +
                             (options.until.empty() ? "" : " until " + options.until));
  if (!token.ok()) return Error{ErrorId::kOptionValue, token.error().message};
  const std::string file = options.to.empty() ? options.name + ".token" : options.to;
  const net::ApiToken made = PS_TRY(CreateApiToken(*token, file, options.tokens));
  std::ostream& out = globals.environment.out;
  Json json = JsonOf(made);
  json["file"] = file;
  json["tokens"] = options.tokens;
  if (WriteStructured(out, format, json)) return ExitCode::kOk;
  if (format == OutputFormat::kName) {
    out << file << "\n";
    return ExitCode::kOk;
  }
  out << FieldsText({{"role", options.role},
                     {"name", made.name},
                     {"token in", file},
                     {"known in", options.tokens}});
  globals.environment.err << "Bring " << options.tokens
                          << " to all coordinators: they read it again by themselves. Who has "
                          << file << " sets DS_TOKEN_FILE to it\n";
  return ExitCode::kOk;
}

Result<ExitCode> List(Globals& globals, const TokenOptions& options) {
  const OutputFormat format = PS_TRY(globals.Format());
  const auto list = PS_TRY(net::ApiTokens::ReadFile(options.tokens));
  std::ostream& out = globals.environment.out;
  Json tokens = Json::array();
  Table table({"ROLE", "NAME", "SHA-256", "UNTIL"});
  for (const net::ApiToken& token : list.tokens()) {
    tokens.push_back(JsonOf(token));
    const std::string until = UntilText(token);
    table.Add({net::ApiRoleName(token.role), token.name,
               format == OutputFormat::kWide ? token.hash : token.hash.substr(0, 12),
               FlagOf(tokens.back(), "expired") ? until + ", expired" : until});
  }
  if (WriteStructured(out, format, Json{{"tokens", tokens}})) return ExitCode::kOk;
  if (format == OutputFormat::kName) {
    for (const Json& token : tokens) out << TextOf(token, "name") << "\n";
  } else {
    out << table.ToString();
  }
  return ExitCode::kOk;
}

Result<ExitCode> Revoke(Globals& globals, const TokenOptions& options) {
  const OutputFormat format = PS_TRY(globals.Format());
  const net::ApiToken gone = PS_TRY(RevokeApiToken(options.name, options.tokens));
  std::ostream& out = globals.environment.out;
  if (WriteStructured(out, format, Json{{"revoked", JsonOf(gone)}})) return ExitCode::kOk;
  out << "the token of " << gone.name << " opens nothing any more\n";
  globals.environment.err << "Bring " << options.tokens
                          << " to all coordinators: they read it again by themselves\n";
  return ExitCode::kOk;
}

}  // namespace

void AddTokenCommands(CLI::App& app, Globals& globals) {
  CLI::App* const group = AddGroup(app, "token", "Tokens for the REST API of a cluster");
  const auto list_option = [](CLI::App* command, TokenOptions& options) {
    command
        ->add_option("--tokens", options.tokens,
                     "The list of their hashes, the same on all coordinators")
        ->type_name("FILE")
        ->capture_default_str();
  };

  CLI::App* const create =
      AddCommand(*group, "create", "Make a token, in a file, and add its hash to the list",
                 "  ds-cli token create submitter anna --to ~/.config/ds/token --tokens tokens\n"
                 "  ds-cli token create viewer grafana --until 2027-06-30\n\n"
                 "A viewer sees everything; a submitter starts and ends jobs and pins "
                 "checkpoints;\nan admin also drains nodes, prunes, rolls back and imports.\n",
                 globals);
  const auto created = std::make_shared<TokenOptions>();
  create->add_option("role", created->role, kRoles)->required()->type_name("ROLE");
  create->add_option("name", created->name, "For people, and the log")
      ->required()
      ->type_name("NAME");
  create->add_option("--to", created->to, "Where the token goes, for its owner alone (NAME.token)")
      ->type_name("FILE");
  create->add_option("--until", created->until, "From this day on it opens nothing")
      ->type_name("DATE");
  list_option(create, *created);
  create->callback([&globals, created] {
    globals.action = [&globals, created] { return Create(globals, *created); };
  });

  CLI::App* const list = AddCommand(*group, "list", "Whose tokens are known",
                                    "  ds-cli token list\n  ds-cli token list -o json\n", globals);
  const auto listed = std::make_shared<TokenOptions>();
  list_option(list, *listed);
  list->callback([&globals, listed] {
    globals.action = [&globals, listed] { return List(globals, *listed); };
  });

  CLI::App* const revoke = AddCommand(*group, "revoke", "Take a token from the list",
                                      "  ds-cli token revoke anna\n", globals);
  const auto revoked = std::make_shared<TokenOptions>();
  revoke->add_option("name", revoked->name, "As in the list")->required()->type_name("NAME");
  list_option(revoke, *revoked);
  revoke->callback([&globals, revoked] {
    globals.action = [&globals, revoked] { return Revoke(globals, *revoked); };
  });
}

}  // namespace ps::cli
