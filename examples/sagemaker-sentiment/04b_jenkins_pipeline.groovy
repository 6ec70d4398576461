pipeline {
    agent any
    stages {
        stage('Trigger SageMaker Pipeline') {
            steps {
                sh '''
                    pip install "sagemaker>=2.200,<3" boto3
                    python trigger_pipeline.py
                '''
            }
        }
        stage('Wait for Training') {
            steps {
                sh 'python wait_for_pipeline.py'
            }
        }
        stage('Deploy if Approved') {
            steps {
                sh 'python deploy_if_approved.py'
            }
        }
    }
}
