//! What the tests share: a registry on loopback, images made on the spot, a daemon to start and kill.
