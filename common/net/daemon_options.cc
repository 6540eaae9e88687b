#include "common/net/daemon_options.h"

#include <spdlog/spdlog.h>
#include <sysexits.h>

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <system_error>
#include <utility>

#include "common/error_id.h"
#include "common/job/document.h"
#include "common/net/log.h"
#include "common/net/this_host.h"

namespace ps::net {
namespace {

constexpr char kLogLevel[] = "log-level";

std::string Trim(const std::string& text) {
  const auto begin = text.find_first_not_of(" \t\r");
  if (begin == std::string::npos) return "";
  return text.substr(begin, text.find_last_not_of(" \t\r") - begin + 1);
}

// The value without quotes and without the comment behind it.
Result<std::string> ReadValue(const std::string& text) {
  std::string rest;
  std::string value;
  if (!text.empty() && (text[0] == '"' || text[0] == '\'')) {
    const auto end = text.find(text[0], 1);
    if (end == std::string::npos) return Error{ErrorCode::kInvalid, "the quote is not closed"};
    value = text.substr(1, end - 1);
    rest = Trim(text.substr(end + 1));
    if (!rest.empty() && rest[0] != '#' && rest[0] != ';') {
      return Error{ErrorCode::kInvalid, "'" + rest + "' follows the closing quote"};
    }
    return value;
  }
  // As in "a#b" it is a part of the value; a comment stands apart.
  for (std::size_t at = 0; at < text.size(); ++at) {
    const bool apart = at == 0 || text[at - 1] == ' ' || text[at - 1] == '\t';
    if (apart && (text[at] == '#' || text[at] == ';')) return Trim(text.substr(0, at));
  }
  return text;
}

// CLI11's own reader splits values at commas and spaces and cuts them at '#', also within quotes.
class StrictIni final : public CLI::Config {
 public:
  explicit StrictIni(const Configuration& configuration) : configuration_(configuration) {}

  std::string to_config(const CLI::App*, bool, bool, std::string) const override { return ""; }
  std::vector<CLI::ConfigItem> from_config(std::istream&) const override {
    std::vector<CLI::ConfigItem> list;
    for (const auto& [key, entry] : configuration_) {
      CLI::ConfigItem item;
      item.name = key;
      item.inputs = {entry.value};
      list.push_back(std::move(item));
    }
    return list;
  }

 private:
  const Configuration& configuration_;
};

}  // namespace

Result<Configuration> ParseConfiguration(std::istream& text, const std::vector<std::string>& keys) {
  Configuration configuration;
  std::string line;
  for (int number = 1; std::getline(text, line); ++number) {
    const auto wrong = [number](const std::string& what) {
      return Error{ErrorId::kConfigurationFile, "line " + std::to_string(number) + ": " + what};
    };
    if (number > kConfigurationLinesMax) return wrong("the file is too long");
    line = Trim(line);
    if (line.empty() || line[0] == '#' || line[0] == ';') continue;
    if (line.find('\0') != std::string::npos) return wrong("this is not text");
    if (line[0] == '[') return wrong("'" + line + "': there are no sections");
    const auto equals = line.find('=');
    if (equals == std::string::npos) return wrong("'" + line + "' is not KEY = VALUE");
    const std::string key = Trim(line.substr(0, equals));
    if (std::find(keys.begin(), keys.end(), key) == keys.end()) {
      const std::string nearest = job::NearestWord(key, keys);
      return wrong("unknown key '" + key + "'" +
                   (nearest.empty() ? std::string() : "; did you mean '" + nearest + "'?"));
    }
    auto value = ReadValue(Trim(line.substr(equals + 1)));
    if (!value.ok()) return wrong(key + ": " + value.error().message);
    const auto [at, is_new] =
        configuration.emplace(key, ConfigurationEntry{std::move(*value), number});
    if (!is_new) {
      return wrong("'" + key + "' is in line " + std::to_string(at->second.line) + " already");
    }
  }
  if (text.bad()) return Error{ErrorId::kConfigurationUnreadable, "cannot be read"};
  return configuration;
}

DaemonOptions::DaemonOptions(std::string program, const std::string& description)
    : program_(std::move(program)), app_(description, program_) {
  app_.set_version_flag("--version", program_ + " " PS_VERSION);
  app_.set_config("--config", "", "Configuration file: KEY = VALUE, keys as the flags below");
  app_.allow_config_extras(CLI::config_extras_mode::error);
  app_.add_flag("--check-config", check_only_, "Check flags and configuration file, then end")
      ->configurable(false);
  app_.add_option("--log-level", log_level_, "trace, debug, info, warn, error or off")
      ->capture_default_str();
  app_.add_option("--log-format", log_format_, "text, json or journal")->capture_default_str();
}

void DaemonOptions::AddSecurity() {
  app_.add_option("--key", security_.key,
                  "File with the own pair of keys, of `ds-cli auth create`");
  app_.add_option("--trusted", security_.trusted,
                  "List of the keys that are trusted, the same on all nodes");
  app_.add_option("--zookeeper-secret", zookeeper_secret_,
                  "File with a line NAME:PASSWORD, the same on all nodes: only who has it may read "
                  "or change what the cluster keeps in ZooKeeper");
  app_.add_flag("--insecure", insecure_,
                "Talk to everybody, also beyond this host: the network itself is guarded");
}

Result<SecurityOptions> DaemonOptions::Security(const std::string& bind) const {
  const auto wrong = [](std::string what) {
    return Error{ErrorId::kFlagsTogether, std::move(what)};
  };
  if (security_.key.empty() != security_.trusted.empty()) {
    return wrong("--key and --trusted are of use only together");
  }
  if (security_.secure() && insecure_) return wrong("--insecure and --key contradict each other");
  if (!security_.secure() && !insecure_ && !IsLoopback(bind)) {
    return Error{ErrorId::kKeysWanted,
                 "--bind " + bind +
                     " can be reached from other hosts: give --key and --trusted (`ds-cli auth "
                     "create` makes them), or --insecure if the network itself is guarded"};
  }
  SecurityOptions security;
  if (security_.secure()) {
    std::error_code ignored;
    security.key = std::filesystem::absolute(security_.key, ignored).string();
    security.trusted = std::filesystem::absolute(security_.trusted, ignored).string();
  }
  return security;
}

std::optional<int> DaemonOptions::Parse(int argc, const char* const* argv) {
  arguments_.assign(argv + 1, argv + argc);
  // The file is read first, since CLI11 does not let its reader know which file it is.
  int files = 0;
  for (std::size_t at = 0; at < arguments_.size(); ++at) {
    const std::string& word = arguments_[at];
    const bool apart = word == "--config" && at + 1 < arguments_.size();
    if (!apart && word.rfind("--config=", 0) != 0) continue;
    file_ = apart ? arguments_[at + 1] : word.substr(9);
    ++files;
  }
  if (files > 1) {
    file_.clear();
    return Wrong(Error{ErrorId::kCommandLine, "--config is given more than once"});
  }
  const bool asks = std::any_of(arguments_.begin(), arguments_.end(), [](const std::string& word) {
    return word == "--help" || word == "-h" || word == "--version";
  });
  if (!file_.empty() && !asks) {
    auto configuration = ReadFile();
    if (!configuration.ok()) return Wrong(configuration.error());
    configuration_ = std::move(*configuration);
  }
  app_.config_formatter(std::make_shared<StrictIni>(configuration_));
  try {
    app_.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return Failed(error);
  }
  if (const Status logging = SetUpLogging(program_, log_level_, log_format_); !logging.ok()) {
    return Wrong(logging.error());
  }
  return std::nullopt;
}

int DaemonOptions::Failed(const CLI::ParseError& error) {
  if (error.get_exit_code() == 0) return app_.exit(error);
  const std::string message = error.what();
  for (const auto& [key, entry] : configuration_) {
    const auto at = message.find("--" + key);
    if (at == std::string::npos || OnCommandLine(key)) continue;
    const char after = at + key.size() + 2 < message.size() ? message[at + key.size() + 2] : ' ';
    if (after == '-' || std::isalnum(static_cast<unsigned char>(after)) != 0) continue;
    return Wrong(Error{ErrorId::kConfigurationFile,
                       file_ + ": line " + std::to_string(entry.line) + ": " + message});
  }
  std::fprintf(stderr, "%s: %s\nRun with --help for more information.\n", program_.c_str(),
               ErrorLine(Error{ErrorId::kCommandLine, message}).c_str());
  // What is missing could as well stand in the file.
  const bool missing = error.get_exit_code() == static_cast<int>(CLI::ExitCodes::RequiredError);
  return missing && !file_.empty() ? EX_CONFIG : EX_USAGE;
}

int DaemonOptions::Wrong(const Error& error) const {
  std::fprintf(stderr, "%s: %s\n", program_.c_str(), ErrorLine(error).c_str());
  return file_.empty() ? EX_USAGE : EX_CONFIG;
}

int DaemonOptions::ConfigurationIsGood() const {
  std::printf("%s: the configuration is good\n", program_.c_str());
  return EX_OK;
}

Result<Configuration> DaemonOptions::ReadFile() const {
  std::error_code error;
  if (std::filesystem::is_directory(file_, error)) {
    return Error{ErrorId::kConfigurationUnreadable, file_ + ": is a directory"};
  }
  errno = 0;
  std::ifstream text(file_);
  if (!text) {
    return Error{ErrorId::kConfigurationUnreadable,
                 file_ + ": cannot be read: " + std::generic_category().message(errno)};
  }
  auto configuration = ParseConfiguration(text, Keys());
  if (!configuration.ok()) return Annotate(configuration.error(), file_ + ": ");
  return configuration;
}

std::vector<std::string> DaemonOptions::Keys() const {
  std::vector<std::string> keys;
  for (const CLI::Option* option : app_.get_options()) {
    if (!option->get_configurable()) continue;
    for (const std::string& name : option->get_lnames()) keys.push_back(name);
  }
  return keys;
}

bool DaemonOptions::OnCommandLine(const std::string& key) const {
  return std::any_of(arguments_.begin(), arguments_.end(), [&key](const std::string& word) {
    return word == "--" + key || word.rfind("--" + key + "=", 0) == 0;
  });
}

Status DaemonOptions::Reload() {
  if (file_.empty()) {
    spdlog::info("nothing to reload: there is no --config");
    return Ok();
  }
  const Configuration now = PS_TRY(ReadFile());
  if (!OnCommandLine(kLogLevel)) {
    const auto entry = now.find(kLogLevel);
    const std::string level = entry == now.end() ? "info" : entry->second.value;
    const Status set = SetLogLevel(level);
    if (!set.ok()) {
      return Annotate(set.error(), file_ + ": line " + std::to_string(entry->second.line) + ": ");
    }
    if (level != log_level_) {
      spdlog::info("{}: the log level was {} and is {}", file_, log_level_, level);
    }
    log_level_ = level;
  }
  // Compared with what the process runs with, and so said again until it is restarted.
  std::string others;
  const auto value_in = [](const Configuration& configuration, const std::string& key) {
    const auto entry = configuration.find(key);
    return entry == configuration.end() ? std::optional<std::string>() : entry->second.value;
  };
  for (const std::string& key : Keys()) {
    if (key == kLogLevel || OnCommandLine(key)) continue;
    if (value_in(now, key) != value_in(configuration_, key)) others += " " + key;
  }
  if (!others.empty()) spdlog::warn("{}: changed, and needs a restart:{}", file_, others);
  spdlog::info("{} was read again", file_);
  return Ok();
}

}  // namespace ps::net
