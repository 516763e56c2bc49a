"""Real servers for tests: kube-apiserver with etcd, an S3 gateway, and proxies that break the way to them."""
