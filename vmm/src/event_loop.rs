//! epoll and its subscribers.
