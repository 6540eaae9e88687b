#include "tests/common/zookeeper/fixture.h"

#include <zookeeper/zookeeper.h>

#include <algorithm>
#include <atomic>
#include <thread>

namespace ps::zk {

void ExpireSession(const std::string& address, const Session::Credentials& credentials) {
  clientid_t id{};
  id.client_id = credentials.session_id;
  std::copy_n(credentials.password.data(), std::min(credentials.password.size(), sizeof(id.passwd)),
              id.passwd);
  std::atomic<bool> connected = false;
  const auto watcher = [](zhandle_t*, int, int state, const char*, void* context) {
    if (state == ZOO_CONNECTED_STATE) *static_cast<std::atomic<bool>*>(context) = true;
  };
  // The session's owner connects again at once and may take the session back before the twin has
  // heard of its own connection, which then says nothing more for seconds: another twin tries.
  for (int attempt = 0; attempt < 20 && !connected; ++attempt) {
    zhandle_t* const twin = zookeeper_init2(address.c_str(), watcher, 10'000, &id, &connected,
                                            ZOO_NO_LOG_CLIENTENV, [](const char*) {});
    ASSERT_NE(twin, nullptr);
    for (int i = 0; i < 100 && !connected; ++i) std::this_thread::sleep_for(milliseconds(5));
    zookeeper_close(twin);
  }
  EXPECT_TRUE(connected);
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
