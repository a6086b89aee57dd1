"""The service on several replicas: ingresses that speak HTTP and decode, engines that run batches."""
