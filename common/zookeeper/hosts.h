// Where ZooKeeper is, as it stands in options and flags: "host:port,host:port/chroot".
#pragma once

#include <string>

#include "common/result.h"

namespace ps::zk {

struct Hosts {
  std::string servers;  // "host:port,host:port", for the C client
  std::string chroot;   // empty, or "/a/b"
};

// kInvalid, with the text in the message, if it is malformed. Names are not resolved.
Result<Hosts> ParseHosts(const std::string& text);

// True for "/", "/a", "/a/b": no empty, "." or ".." names, no NUL, no slash at the end.
bool ValidPath(const std::string& path);

}  // namespace ps::zk
