// A round by the AWS SDK for JavaScript: node round.js MODEL.TAR.GZ. Prints what it was answered, as one JSON object.
import { readFile } from "node:fs/promises";
import { CreateBucketCommand, GetObjectCommand, HeadObjectCommand, PutObjectCommand, S3Client } from "@aws-sdk/client-s3";
import {
  CreateEndpointCommand, CreateEndpointConfigCommand, CreateModelCommand, CreateModelPackageCommand,
  CreateModelPackageGroupCommand, DescribeEndpointCommand, DescribeModelPackageCommand, DescribeModelPackageGroupCommand,
  SageMakerClient, UpdateModelPackageCommand, paginateListModelPackages, waitUntilEndpointInService,
} from "@aws-sdk/client-sagemaker";
import { InvokeEndpointCommand, SageMakerRuntimeClient } from "@aws-sdk/client-sagemaker-runtime";
import { GetCallerIdentityCommand, STSClient } from "@aws-sdk/client-sts";

const said = {};
const sts = new STSClient();
const s3 = new S3Client({ forcePathStyle: true });
const sagemaker = new SageMakerClient();
const runtime = new SageMakerRuntimeClient();
const image = "123456789012.dkr.ecr.us-east-1.amazonaws.com/plain:1";

said.arn = (await sts.send(new GetCallerIdentityCommand())).Arn;

await s3.send(new CreateBucketCommand({ Bucket: "script-models" }));
const place = { Bucket: "script-models", Key: "a b/ü/model.tar.gz" };
await s3.send(new PutObjectCommand({ ...place, Body: await readFile(process.argv[2]), Metadata: { by: "javascript" } }));
said.metadata = (await s3.send(new HeadObjectCommand(place))).Metadata;
said.bytes = (await (await s3.send(new GetObjectCommand(place))).Body.transformToByteArray()).length;
try {
  await s3.send(new GetObjectCommand({ ...place, Key: "nothing" }));
} catch (error) {
  said.missing = error.name;
}

const group = { ModelPackageGroupName: "words" };
await sagemaker.send(new CreateModelPackageGroupCommand(group));
said.group = (await sagemaker.send(new DescribeModelPackageGroupCommand(group))).ModelPackageGroupArn;
const container = { Image: image, ModelDataUrl: "s3://script-models/a b/ü/model.tar.gz" };
const types = { SupportedContentTypes: ["text/plain"], SupportedResponseMIMETypes: ["text/plain"] };
const made = await sagemaker.send(
  new CreateModelPackageCommand({ ...group, InferenceSpecification: { Containers: [container], ...types } }),
);
await sagemaker.send(
  new UpdateModelPackageCommand({ ModelPackageArn: made.ModelPackageArn, ModelApprovalStatus: "Approved" }),
);
const shown = await sagemaker.send(new DescribeModelPackageCommand({ ModelPackageName: made.ModelPackageArn }));
said.version = [shown.ModelPackageVersion, shown.ModelApprovalStatus, shown.CreationTime instanceof Date];
said.listed = [];
for await (const page of paginateListModelPackages({ client: sagemaker }, group)) {
  said.listed.push(...page.ModelPackageSummaryList.map((each) => each.ModelPackageVersion));
}

const role = "arn:aws:iam::123456789012:role/loopline-editor";
await sagemaker.send(
  new CreateModelCommand({ ModelName: "words", PrimaryContainer: container, ExecutionRoleArn: role }),
);
const variant = { VariantName: "all", ModelName: "words", InitialInstanceCount: 1, InstanceType: "ml.m5.large" };
await sagemaker.send(new CreateEndpointConfigCommand({ EndpointConfigName: "words", ProductionVariants: [variant] }));
await sagemaker.send(new CreateEndpointCommand({ EndpointName: "words", EndpointConfigName: "words" }));
await waitUntilEndpointInService(
  { client: sagemaker, maxWaitTime: 90, minDelay: 1, maxDelay: 1 },
  { EndpointName: "words" },
);
said.status = (await sagemaker.send(new DescribeEndpointCommand({ EndpointName: "words" }))).EndpointStatus;
const answer = await runtime.send(
  new InvokeEndpointCommand({ EndpointName: "words", Body: "good", ContentType: "text/plain", Accept: "text/plain" }),
);
said.answer = [new TextDecoder().decode(answer.Body), answer.InvokedProductionVariant];
try {
  await sagemaker.send(new DescribeEndpointCommand({ EndpointName: "none" }));
} catch (error) {
  said.unknown = [error.name, error.message];
}
console.log(JSON.stringify(said));
