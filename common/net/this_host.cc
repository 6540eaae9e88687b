#include "common/net/this_host.h"

#include <arpa/inet.h>
#include <ifaddrs.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <cstring>
#include <memory>

#include "common/net/node_keys.h"

namespace ps::net {
namespace {

bool IsOwn(int family, const void* address, std::size_t bytes) {
  ifaddrs* all = nullptr;
  if (getifaddrs(&all) != 0) return false;
  const std::unique_ptr<ifaddrs, void (*)(ifaddrs*)> guard(all, &freeifaddrs);
  for (const ifaddrs* one = all; one != nullptr; one = one->ifa_next) {
    if (one->ifa_addr == nullptr || one->ifa_addr->sa_family != family) continue;
    // The kernel's structs, whose alignment is theirs.
    sockaddr_storage storage{};
    std::memcpy(&storage, one->ifa_addr,
                family == AF_INET ? sizeof(sockaddr_in) : sizeof(sockaddr_in6));
    const void* const own =
        family == AF_INET
            ? static_cast<const void*>(&reinterpret_cast<const sockaddr_in*>(&storage)->sin_addr)
            : static_cast<const void*>(&reinterpret_cast<const sockaddr_in6*>(&storage)->sin6_addr);
    if (std::memcmp(own, address, bytes) == 0) return true;
  }
  return false;
}

}  // namespace

bool IsLoopback(const std::string& host) {
  in_addr four{};
  in6_addr six{};
  if (host.empty() || host == "localhost") return true;
  if (inet_pton(AF_INET, host.c_str(), &four) == 1) return ntohl(four.s_addr) >> 24 == 127;
  return inet_pton(AF_INET6, host.c_str(), &six) == 1 && IN6_IS_ADDR_LOOPBACK(&six);
}

bool OnThisHost(const std::string& keyed_endpoint) {
  const std::string endpoint = SplitKey(keyed_endpoint).address;
  const std::string tcp = "tcp://";
  if (endpoint.compare(0, tcp.size(), tcp) != 0) return true;  // ipc, inproc
  const std::size_t colon = endpoint.rfind(':');
  std::string host = endpoint.substr(tcp.size(), colon - tcp.size());
  if (host.size() > 2 && host.front() == '[' && host.back() == ']') {
    host = host.substr(1, host.size() - 2);
  }
  if (host == "localhost") return true;
  in_addr four{};
  in6_addr six{};
  if (inet_pton(AF_INET, host.c_str(), &four) == 1) {
    const bool loopback = ntohl(four.s_addr) >> 24 == 127;
    return loopback || IsOwn(AF_INET, &four, sizeof(four));
  }
  return inet_pton(AF_INET6, host.c_str(), &six) == 1 && IsOwn(AF_INET6, &six, sizeof(six));
}

}  // namespace ps::net
