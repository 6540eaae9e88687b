#include "common/zookeeper/hosts.h"

#include <algorithm>
#include <charconv>
#include <system_error>

#include "common/error_id.h"

namespace ps::zk {

// The C client has the same rules, and tells a violation from other failures in some calls only.
bool ValidPath(const std::string& path) {
  if (path == "/") return true;
  if (path.empty() || path.front() != '/' || path.find('\0') != std::string::npos) return false;
  for (std::size_t begin = 1; begin <= path.size();) {
    const std::size_t end = std::min(path.find('/', begin), path.size());
    const std::string name = path.substr(begin, end - begin);
    if (name.empty() || name == "." || name == "..") return false;
    begin = end + 1;
  }
  return true;
}

Result<Hosts> ParseHosts(const std::string& text) {
  const auto bad = [&](const std::string& why) {
    return Error{ErrorId::kZooKeeperAddress, "ZooKeeper address '" + text + "': " + why +
                                                 "; expected host:port,host:port/chroot"};
  };
  Hosts hosts;
  const std::size_t slash = text.find('/');
  hosts.servers = text.substr(0, slash);
  if (slash != std::string::npos) hosts.chroot = text.substr(slash);
  while (!hosts.chroot.empty() && hosts.chroot.back() == '/') hosts.chroot.pop_back();
  if (hosts.chroot.find(',') != std::string::npos) {
    return bad("the chroot may stand only once, after the last host");
  }
  if (!hosts.chroot.empty() && !ValidPath(hosts.chroot))
    return bad("the chroot is not a valid path");
  std::size_t begin = 0;
  while (begin <= hosts.servers.size()) {
    const std::size_t end = std::min(hosts.servers.find(',', begin), hosts.servers.size());
    const std::string server = hosts.servers.substr(begin, end - begin);
    const std::size_t colon = server.rfind(':');
    if (colon == std::string::npos || colon == 0) return bad("'" + server + "' has no port");
    unsigned port = 0;
    const char* const last = server.data() + server.size();
    const auto parsed = std::from_chars(server.data() + colon + 1, last, port);
    if (parsed.ec != std::errc() || parsed.ptr != last || port == 0 || port > 65535) {
      return bad("'" + server + "' has a bad port");
    }
    begin = end + 1;
  }
  return hosts;
}

}  // namespace ps::zk
