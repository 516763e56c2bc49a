# Submission to Flink: the job's image, a Java runtime, and Beam's Flink job server, which is not in this repository:
# put the jar org.apache.beam:beam-runners-flink-1.19-job-server:2.77.0 of Maven Central beside this file first.
#   docker build --file deploy/images/submit.Dockerfile --tag kube-history-submit:0.1.0 deploy/images
ARG JOB_IMAGE=kube-history:0.1.0
FROM eclipse-temurin:17-jre-jammy AS java

FROM ${JOB_IMAGE}
COPY --from=java /opt/java/openjdk /opt/java/openjdk
COPY beam-runners-flink-1.19-job-server-2.77.0.jar /opt/beam/
ENV PATH=/opt/java/openjdk/bin:$PATH \
    FLINK_JOB_SERVER_JAR=/opt/beam/beam-runners-flink-1.19-job-server-2.77.0.jar
