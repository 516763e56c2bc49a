# Flink with its S3 file system switched on, for checkpoints and savepoints.
#   docker build --file deploy/images/flink.Dockerfile --tag kube-history-flink:0.1.0 deploy/images
FROM flink:1.19.3-java17

RUN mkdir -p /opt/flink/plugins/s3-fs-presto \
    && cp /opt/flink/opt/flink-s3-fs-presto-1.19.3.jar /opt/flink/plugins/s3-fs-presto/
USER 9999:9999
