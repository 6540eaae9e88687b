// What the command lines of the daemons have in common: flags, the configuration file, logging.
//
// `--config FILE` names an INI file of `key = value` lines whose keys are the names of the flags:
//
//     # A comment, on a line of its own or after a value.
//     zookeeper = zk1:2181,zk2:2181,zk3:2181/ds
//     name      = "rack 4, left"
//
// Quotes keep spaces at the ends, '#' and ';'. A flag on the command line wins over the file. What
// the file has and no flag is called, a key twice, or a value that the flag would refuse is an
// error that names the file, the line and the key.
//
// One thread. Parse() is called once; Reload() after it, on SIGHUP.
#pragma once

#include <CLI/CLI.hpp>
#include <istream>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "common/net/context.h"
#include "common/result.h"

namespace ps::net {

struct ConfigurationEntry {
  std::string value;
  int line = 0;
};
using Configuration = std::map<std::string, ConfigurationEntry>;

inline constexpr int kConfigurationLinesMax = 10'000;

// kInvalid, beginning with "line N: ", if a line makes no sense or has a key not among `keys`.
Result<Configuration> ParseConfiguration(std::istream& text, const std::vector<std::string>& keys);

class DaemonOptions {
 public:
  // Adds --config, --check-config, --log-level, --log-format, --version and --help.
  DaemonOptions(std::string program, const std::string& description);
  DaemonOptions(const DaemonOptions&) = delete;
  DaemonOptions& operator=(const DaemonOptions&) = delete;

  CLI::App& app() { return app_; }

  // Reads the command line and the file and sets logging up. A value is the exit status to end with
  // at once; why is then on stderr: 0 after --help, 64 (EX_USAGE) if the command line is wrong, 78
  // (EX_CONFIG) if the file is.
  std::optional<int> Parse(int argc, const char* const* argv);

  // --check-config was given: the caller makes its own checks and ends with ConfigurationIsGood().
  bool check_only() const { return check_only_; }
  int ConfigurationIsGood() const;
  // Says what is wrong on stderr. 78 if there is a configuration file, else 64.
  int Wrong(const Error& error) const;

  // Adds --key, --trusted, --zookeeper-secret and --insecure, for a daemon that talks to others.
  void AddSecurity();
  // What they say. `bind`: where it listens, or nothing; beyond this host that wants keys, or the
  // word that the network itself is guarded. The error is for Wrong().
  Result<SecurityOptions> Security(const std::string& bind) const;
  // --insecure was given.
  bool insecure() const { return insecure_; }
  // zk::Session::Options::secret_file.
  const std::string& zookeeper_secret() const { return zookeeper_secret_; }

  const std::string& log_level() const { return log_level_; }

  // Reads the file again and takes over the log level, unless a flag has set it. What else has
  // changed is named in the log: it needs a restart. After an error nothing has changed.
  Status Reload();

 private:
  Result<Configuration> ReadFile() const;
  std::vector<std::string> Keys() const;
  bool OnCommandLine(const std::string& key) const;
  // What CLI11 says, with file and line if the value at fault came from there.
  int Failed(const CLI::ParseError& error);

  const std::string program_;
  CLI::App app_;
  std::string file_;
  std::string log_level_ = "info";
  std::string log_format_ = "text";
  bool check_only_ = false;
  SecurityOptions security_;
  bool insecure_ = false;
  std::string zookeeper_secret_;
  std::vector<std::string> arguments_;
  Configuration configuration_;  // as the process runs with it
};

}  // namespace ps::net
