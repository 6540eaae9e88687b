#include "tests/common/zookeeper/fixture.h"

#include <algorithm>
#include <boost/asio/ip/tcp.hpp>
#include <boost/endian/conversion.hpp>
#include <cstdint>
#include <cstring>
#include <istream>

namespace ps::zk {
namespace {

template <typename T>
void Append(std::string& bytes, T value) {
  const T big = boost::endian::native_to_big(value);
  bytes.append(reinterpret_cast<const char*>(&big), sizeof(big));
}

// One frame: its length, and as many bytes; empty when the connection ends first.
std::string ReadFrame(std::istream& stream) {
  std::int32_t length = 0;
  stream.read(reinterpret_cast<char*>(&length), sizeof(length));
  std::string frame(stream ? std::clamp(boost::endian::big_to_native(length), 0, 1 << 16) : 0, 0);
  stream.read(frame.data(), static_cast<std::streamsize>(frame.size()));
  return stream ? frame : std::string();
}

}  // namespace

// The two requests are written at once, as the owner of the session takes it back as soon as it has
// lost its connection: a twin that waited for an answer in between would often come too late.
void ExpireSession(const std::string& address, const Session::Credentials& credentials) {
  constexpr std::int32_t kCloseSession = -11;
  std::string requests;
  Append<std::int32_t>(requests, 28 + static_cast<std::int32_t>(credentials.password.size()));
  Append<std::int32_t>(requests, 0);       // protocol version
  Append<std::int64_t>(requests, 0);       // last transaction seen
  Append<std::int32_t>(requests, 10'000);  // session timeout in ms
  Append<std::int64_t>(requests, credentials.session_id);
  Append<std::int32_t>(requests, static_cast<std::int32_t>(credentials.password.size()));
  requests += credentials.password;
  Append<std::int32_t>(requests, 8);
  Append<std::int32_t>(requests, 1);  // number of the request
  Append<std::int32_t>(requests, kCloseSession);

  const std::size_t colon = address.rfind(':');
  bool ended = false;
  for (int attempt = 0; attempt < 20 && !ended; ++attempt) {
    boost::asio::ip::tcp::iostream stream;
    stream.expires_after(std::chrono::seconds(2));
    stream.connect(address.substr(0, colon), address.substr(colon + 1));
    stream << requests << std::flush;
    const std::string connected = ReadFrame(stream);
    std::int32_t timeout = 1;
    if (connected.size() >= 8) std::memcpy(&timeout, connected.data() + 4, sizeof(timeout));
    // No time left says that the session has ended; else the answer to the second request does.
    ended = timeout == 0 || !ReadFrame(stream).empty();
  }
  EXPECT_TRUE(ended);
}

ZooKeeperServer& ZooKeeperTest::SharedServer() {
  static const std::unique_ptr<ZooKeeperServer> server = OwnServer();
  return *server;
}

std::unique_ptr<ZooKeeperServer> ZooKeeperTest::OwnServer() {
  auto server = ZooKeeperServer::Start();
  PS_CHECK(server.ok(), server.error().message);
  return std::move(server).value();
}

}  // namespace ps::zk
