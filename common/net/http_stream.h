// One TCP connection, with TLS over it or without, as the algorithms of Boost.Beast take it.
//
// Deadlines are those of tcp(), under TLS too. One loop; destroyed when nothing is under way.
#pragma once

#include <boost/asio/io_context.hpp>
#include <boost/asio/ssl/stream.hpp>
#include <boost/beast/core/tcp_stream.hpp>
#include <optional>
#include <utility>

#include "common/net/tls.h"

namespace ps::net {

class HttpStream {
 public:
  using Tls = boost::asio::ssl::stream<boost::beast::tcp_stream&>;
  using executor_type = boost::beast::tcp_stream::executor_type;

  explicit HttpStream(boost::asio::ip::tcp::socket socket) : tcp_(std::move(socket)) {}
  explicit HttpStream(boost::asio::io_context& context) : tcp_(context) {}
  HttpStream(const HttpStream&) = delete;
  HttpStream& operator=(const HttpStream&) = delete;

  // Before the first byte; the handshake is the caller's.
  void Encrypt(TlsContext context) {
    context_ = std::move(context);
    tls_.emplace(tcp_, *context_);
  }
  bool encrypted() const { return tls_.has_value(); }
  Tls& tls() { return *tls_; }
  boost::beast::tcp_stream& tcp() { return tcp_; }

  executor_type get_executor() { return tcp_.get_executor(); }

  template <typename Buffers, typename Handler>
  void async_read_some(const Buffers& buffers, Handler&& handler) {
    if (tls_) {
      tls_->async_read_some(buffers, std::forward<Handler>(handler));
    } else {
      tcp_.async_read_some(buffers, std::forward<Handler>(handler));
    }
  }

  template <typename Buffers, typename Handler>
  void async_write_some(const Buffers& buffers, Handler&& handler) {
    if (tls_) {
      tls_->async_write_some(buffers, std::forward<Handler>(handler));
    } else {
      tcp_.async_write_some(buffers, std::forward<Handler>(handler));
    }
  }

 private:
  boost::beast::tcp_stream tcp_;
  TlsContext context_;
  std::optional<Tls> tls_;
};

}  // namespace ps::net
