import org.apache.flink.api.common.functions.RichMapFunction;
import org.apache.flink.api.common.state.ValueState;
import org.apache.flink.api.common.state.ValueStateDescriptor;
import org.apache.flink.configuration.Configuration;
import org.apache.flink.streaming.api.environment.StreamExecutionEnvironment;
import org.apache.flink.streaming.api.functions.sink.DiscardingSink;

/** A streaming job that counts ticks for ever, in keyed state; its argument is its name. */
public class Ticks {
  public static void main(String[] arguments) throws Exception {
    StreamExecutionEnvironment environment = StreamExecutionEnvironment.getExecutionEnvironment();
    environment
        .fromSequence(0, Long.MAX_VALUE)
        .map(Ticks::slowly) // in the source's task: nothing piles up before the state, and checkpoints are quick
        .keyBy(tick -> tick % 10)
        .map(new Count())
        .addSink(new DiscardingSink<>());
    environment.execute(arguments[0]);
  }

  static Long slowly(Long tick) throws InterruptedException {
    Thread.sleep(10);
    return tick;
  }

  static class Count extends RichMapFunction<Long, Long> {
    private transient ValueState<Long> count;

    @Override
    public void open(Configuration parameters) {
      count = getRuntimeContext().getState(new ValueStateDescriptor<>("count", Long.class));
    }

    @Override
    public Long map(Long tick) throws Exception {
      count.update(count.value() == null ? 1 : count.value() + 1);
      return count.value();
    }
  }
}
