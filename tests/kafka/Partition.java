import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.util.HexFormat;
import org.apache.kafka.common.utils.Utils;

/**
 * The partition that Kafka's own Java client gives to each key.
 *
 * One argument, the partition count; keys come as hex, one a line, and a partition goes out for each.
 */
public class Partition {
    public static void main(String[] args) throws Exception {
        int count = Integer.parseInt(args[0]);
        BufferedReader keys = new BufferedReader(new InputStreamReader(System.in));
        for (String line = keys.readLine(); line != null; line = keys.readLine()) {
            byte[] key = HexFormat.of().parseHex(line);
            System.out.println(Utils.toPositive(Utils.murmur2(key)) % count);
        }
    }
}
